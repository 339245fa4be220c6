//! A network between two processes, which can be made to fail: a TCP proxy inside this process.
//!
//! ```text
//! let proxy = Proxy::start("127.0.0.1:5432".parse()?, seed).await?;   // peers dial proxy.address() instead
//! proxy.set(Fault::Cut);                                              // at once, for open connections and new ones
//! …
//! let harm = proxy.heal();                                            // what the fault did; harm.was_felt()
//! ```
//!
//! A cut is that of a real network: nobody is told of it. What was sent waits, the end of a peer is not noticed, and after healing all of it
//! arrives, late. New connections are taken, and nothing comes of them until then: a peer that is really cut off could not even open one, but
//! it too would only wait. Where bytes were lost, the connection is reset before any further byte could pass: a TCP stream has no holes.
//!
//! Reset and lost answers hit the connections that are open; so set them while there is traffic. A fault that hit no connection was not felt.

mod carry;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// What a network does to what passes through it. Up is towards the server, down towards who dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: it works.
    None,
    /// Nothing passes either way, and nobody is told.
    Cut,
    /// Nothing passes up. Answers to what was asked before still come.
    CutUp,
    /// Nothing passes down: requests arrive and are done, and who asked hears nothing. The server notices nothing.
    CutDown,
    /// Every connection is reset, and so is each new one.
    Reset,
    /// Requests pass; answers are swallowed. This long after the first that was, its connection is reset.
    LoseAnswers {
        /// Until the reset.
        patience: Duration,
    },
    /// What passes is held back each time, for a time between these.
    Delay {
        /// At least.
        least: Duration,
        /// At most.
        most: Duration,
    },
    /// It passes in small pieces, with a pause after each.
    Drip {
        /// So many bytes at a time.
        bytes: usize,
        /// Between two pieces.
        pause: Duration,
    },
}

/// What a fault did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Harm {
    /// Connections that it hit: bytes or the end of them were held up or lost, or they were reset, or could not come about.
    pub connections: u64,
    /// Bytes that were held up, delayed, or lost.
    pub bytes: u64,
}

impl Harm {
    /// Whether anybody can have noticed.
    pub fn was_felt(self) -> bool {
        self.connections > 0
    }
}

/// The network as it is, and since which change.
#[derive(Clone, Copy, Debug)]
struct Weather {
    fault: Fault,
    generation: u64,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    weather: watch::Sender<Weather>,
    harm: Mutex<Harm>,
    open: AtomicU64,
    dice: Mutex<SmallRng>,
}

impl Shared {
    /// Counts harm done under a generation of the weather, unless that is over. `felt` is the generation that the connection was counted in last.
    fn count(&self, weather: Weather, felt: &AtomicU64, bytes: usize) {
        let mut harm = self.harm.lock();
        if self.weather.borrow().generation != weather.generation {
            return;
        }
        if felt.swap(weather.generation, Ordering::Relaxed) != weather.generation {
            harm.connections += 1;
        }
        harm.bytes += bytes as u64;
    }

    fn between(&self, least: Duration, most: Duration) -> Duration {
        self.dice.lock().random_range(least..=most.max(least))
    }
}

/// A proxy. Its connections end with it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// One on a free loopback port, before `upstream`, which need not be there yet. The seed is for delays.
    ///
    /// # Errors
    /// Where no port can be had.
    pub async fn start(upstream: SocketAddr, seed: u64) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (weather, _) = watch::channel(Weather {
            fault: Fault::None,
            generation: 1,
        });
        let shared = Arc::new(Shared {
            weather,
            harm: Mutex::default(),
            open: AtomicU64::new(0),
            dice: Mutex::new(SmallRng::seed_from_u64(seed)),
        });
        let accepting = tokio::spawn(accept(listener, upstream, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            accepting,
        })
    }

    /// Where to dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the network from now on, and says what the fault before did.
    pub fn set(&self, fault: Fault) -> Harm {
        let mut harm = self.shared.harm.lock();
        self.shared.weather.send_modify(|weather| {
            weather.fault = fault;
            weather.generation += 1;
        });
        std::mem::take(&mut *harm)
    }

    /// Lets everything pass again, and says what the fault did. What was held up arrives now.
    pub fn heal(&self) -> Harm {
        self.set(Fault::None)
    }

    /// What the present fault has done so far.
    pub fn harm(&self) -> Harm {
        *self.shared.harm.lock()
    }

    /// Connections that are open now.
    pub fn connections(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, upstream: SocketAddr, shared: Arc<Shared>) {
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            taken = listener.accept() => match taken {
                Ok((client, _)) => {
                    carried.spawn(serve(client, upstream, Arc::clone(&shared)));
                }
                // Out of files, most likely: the peer that waits is served when there are some again.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = carried.join_next() => {}
        }
    }
}

async fn serve(client: TcpStream, upstream: SocketAddr, shared: Arc<Shared>) {
    shared.open.fetch_add(1, Ordering::Relaxed);
    let _open = Open(&shared);
    carry::carry(client, upstream, &shared).await;
}

/// Counts a connection out, whatever ends it.
struct Open<'a>(&'a Shared);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
