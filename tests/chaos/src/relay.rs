//! A session whose messages come twice, late, or out of turn: a relay between agents and the coordinator that reads what it carries.
//!
//! ```text
//! let relay = Relay::start(coordinator.address(), seed).await?;   // agents dial relay.address() instead
//! relay.set(Mischief::HEAVY);
//! …
//! relay.set(Mischief::NONE);
//! let counts = relay.counts();                                     // what was done, by kind of message
//! ```
//!
//! It only ever sends again what was really sent: a decision that the coordinator did not take is nothing that a network could make up. What
//! went to an agent is repeated to the same process only, in this session or a later one: so a prepare comes after its branch has ended, and a
//! commit from before the coordinator's restart after it. What an agent said may be repeated in any session of its participant: so a vote comes
//! after the decision. Greetings pass untouched, first, and once. A message that is held back is lost where its session ends before.

mod memory;
mod session;

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::transport::{Endpoint, Server, server::TcpIncoming};
use unanimity_proto::v1::{
    CoordinatorMessage, ParticipantMessage, participant_service_server::ParticipantServiceServer,
};

use memory::Memories;
use session::Sessions;

/// What is taken in one message.
const MESSAGE_BYTES: usize = 64 << 20;
/// Who is silent for so long is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// How often what is done to a message, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mischief {
    /// It comes a second time, a little later.
    pub duplicate: f64,
    /// It is held back, and comes behind later ones.
    pub delay: f64,
    /// For so long at most.
    pub longest: Duration,
    /// An old one comes along with it.
    pub replay: f64,
}

impl Mischief {
    /// A faithful relay.
    pub const NONE: Self = Self {
        duplicate: 0.0,
        delay: 0.0,
        longest: Duration::ZERO,
        replay: 0.0,
    };

    /// As much as leaves anything to work.
    pub const HEAVY: Self = Self {
        duplicate: 0.2,
        delay: 0.2,
        longest: Duration::from_millis(200),
        replay: 0.2,
    };
}

/// What was done, by kind of message: `prepare`, `vote`, and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that came twice.
    pub duplicated: BTreeMap<&'static str, u64>,
    /// Messages that were held back.
    pub delayed: BTreeMap<&'static str, u64>,
    /// Old messages that came again.
    pub replayed: BTreeMap<&'static str, u64>,
    /// Those of them that were of an earlier epoch of the coordinator.
    pub of_old_epochs: BTreeMap<&'static str, u64>,
}

/// What all sessions share.
#[derive(Debug)]
struct Shared {
    coordinator: Endpoint,
    mischief: Mutex<Mischief>,
    counts: Mutex<Counts>,
    dice: Mutex<SmallRng>,
    /// What went to each agent.
    down: Memories<CoordinatorMessage>,
    /// What the agents of each participant said.
    up: Memories<ParticipantMessage>,
}

impl Shared {
    fn happens(&self, probability: f64) -> bool {
        self.dice.lock().random_bool(probability)
    }

    fn below(&self, count: usize) -> usize {
        self.dice.lock().random_range(0..count)
    }

    fn up_to(&self, longest: Duration) -> Duration {
        self.dice.lock().random_range(Duration::ZERO..=longest)
    }
}

/// A relay. Its sessions end with it.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Relay {
    /// One on a free loopback port, before the coordinator at this address (`http://…`), which need not be there yet. It begins faithful.
    ///
    /// # Errors
    /// Where no port can be had, or the address is none.
    pub async fn start(coordinator: String, seed: u64) -> io::Result<Self> {
        let coordinator = Endpoint::from_shared(coordinator)
            .map_err(io::Error::other)?
            .connect_timeout(KEEPALIVE)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let shared = Arc::new(Shared {
            coordinator,
            mischief: Mutex::new(Mischief::NONE),
            counts: Mutex::default(),
            dice: Mutex::new(SmallRng::seed_from_u64(seed)),
            down: Memories::default(),
            up: Memories::default(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let service = ParticipantServiceServer::new(Sessions(Arc::clone(&shared)))
            .max_decoding_message_size(MESSAGE_BYTES);
        let serving = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        Ok(Self {
            address,
            shared,
            serving: tokio::spawn(serving),
        })
    }

    /// What agents dial: `http://…`.
    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what is done from now on. What is held back still comes.
    pub fn set(&self, mischief: Mischief) {
        *self.shared.mischief.lock() = mischief;
    }

    /// What was done since the start.
    pub fn counts(&self) -> Counts {
        self.shared.counts.lock().clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
