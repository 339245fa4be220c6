//! All that is hurt: databases, a coordinator, agents, and the network between them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use parking_lot::Mutex;
use tokio::task::block_in_place;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use unanimity_chaos::proxy::Proxy;
use unanimity_client::Client;
use unanimity_proto::v1::{self, admin_service_client::AdminServiceClient};
use unanimity_tests::{
    mariadb::{Flavour, Mariadb},
    port,
    postgres::Postgres,
};

use crate::{
    bank::{Bank, Engine},
    unit::{Unit, UnitRole},
};

/// How long anything may take that should take no time.
const PATIENCE: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(10);

/// Agents of each bank. SQLite takes one.
const AGENTS: usize = 2;

/// Everything that runs.
pub(crate) struct System {
    pub(crate) directory: PathBuf,
    pub(crate) banks: Vec<Bank>,
    pub(crate) coordinator: Unit,
    pub(crate) agents: Vec<Unit>,
    pub(crate) servers: Vec<Server>,
    /// Between each agent and the coordinator; the last one before the clients.
    pub(crate) links: Vec<Link>,
    /// Where the coordinator keeps its log.
    pub(crate) data: PathBuf,
    /// Past whatever stands between processes: for the harness's own questions.
    address: String,
    channel: Channel,
}

/// The network before the coordinator, for one of those who dial it.
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) proxy: Proxy,
    /// Whoever hurts it holds this.
    pub(crate) held: tokio::sync::Mutex<()>,
}

impl Link {
    async fn new(name: &str, upstream: SocketAddr, seed: u64) -> Result<Self> {
        Ok(Self {
            name: name.into(),
            proxy: Proxy::start(upstream, seed).await?,
            held: tokio::sync::Mutex::default(),
        })
    }

    fn address(&self) -> String {
        format!("http://{}", self.proxy.address())
    }
}

/// A database server.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    engine: Engine,
    /// Whoever does something to it holds this.
    running: tokio::sync::Mutex<Database>,
}

enum Database {
    Postgres(Box<Postgres>),
    Mariadb(Box<Mariadb>),
}

impl Server {
    /// Kills all of its processes.
    ///
    /// # Panics
    /// Where it can't be killed.
    fn kill(database: &mut Database) {
        match database {
            Database::Postgres(server) => server.kill(),
            Database::Mariadb(server) => server.kill(),
        }
    }

    fn restart(database: &mut Database) {
        match database {
            Database::Postgres(server) => server.restart(),
            Database::Mariadb(server) => server.restart(),
        }
    }

    /// Kills it, and starts it again after a time; `killing` is called before. False where somebody else is at it.
    pub(crate) async fn kill_and_restart(&self, down: Duration, killing: impl FnOnce()) -> bool {
        let Ok(mut running) = self.running.try_lock() else {
            return false;
        };
        killing();
        block_in_place(|| Self::kill(&mut running));
        tokio::time::sleep(down).await;
        block_in_place(|| Self::restart(&mut running));
        true
    }

    /// Whether this bank is kept by it.
    pub(crate) fn keeps(&self, bank: &Bank) -> bool {
        bank.engine == self.engine
    }
}

impl System {
    /// Starts all of it, and waits until it works.
    ///
    /// # Errors
    /// Where it doesn't come to that.
    pub(crate) async fn start(directory: &Path, seed: u64) -> Result<Self> {
        let (postgres, mariadb) = block_in_place(|| {
            std::thread::scope(|scope| {
                let postgres = scope.spawn(|| Postgres::start(&["max_prepared_transactions=100"]));
                let mariadb = Mariadb::start(Flavour::Mariadb, &[]);
                (postgres.join(), mariadb)
            })
        });
        let postgres = postgres.map_err(|_| anyhow::anyhow!("PostgreSQL can't be started"))?;
        let sqlite = format!("sqlite:{}", directory.join("lite.db").display());
        let banks = vec![
            Bank::create("post", Engine::Postgres, postgres.new_database().await).await?,
            Bank::create("maria", Engine::Mariadb, mariadb.new_database().await).await?,
            Bank::create("lite", Engine::Sqlite, sqlite).await?,
        ];
        let server = |name, engine, database| Server {
            name,
            engine,
            running: tokio::sync::Mutex::new(database),
        };
        let servers = vec![
            server(
                "postgres",
                Engine::Postgres,
                Database::Postgres(postgres.into()),
            ),
            server(
                "mariadb",
                Engine::Mariadb,
                Database::Mariadb(mariadb.into()),
            ),
        ];
        let listen = format!("127.0.0.1:{}", port::free());
        let address = format!("http://{listen}");
        let data = directory.join("coordinator-data");
        let coordinator = Unit::start(
            directory,
            "coordinator",
            UnitRole::Coordinator,
            coordinator_arguments(&data, &listen),
        );
        let channel = Endpoint::from_shared(address.clone())?
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(2))
            .timeout(Duration::from_secs(10))
            .connect_lazy();
        let mut system = Self {
            directory: directory.into(),
            banks,
            coordinator,
            agents: Vec::new(),
            servers,
            links: Vec::new(),
            data,
            address,
            channel,
        };
        system.add_agents(listen.parse()?, seed).await?;
        system.serves().await?;
        system.connected().await?;
        Ok(system)
    }

    async fn add_agents(&mut self, coordinator: SocketAddr, seed: u64) -> Result<()> {
        for (number, bank) in self.banks.iter().enumerate() {
            let agents = match bank.engine {
                Engine::Sqlite => 1,
                Engine::Postgres | Engine::Mariadb => AGENTS,
            };
            for agent in 1..=agents {
                let name = format!("{}-{agent}", bank.name);
                let file = self.directory.join(format!("{name}.toml"));
                let link = Link::new(&name, coordinator, seed).await?;
                std::fs::write(&file, bank.agent_configuration(&link.address()))?;
                self.links.push(link);
                let arguments = ["participant", "sql", "--config", text(&file)?];
                self.agents.push(Unit::start(
                    &self.directory,
                    &name,
                    UnitRole::Agent(number),
                    arguments.map(str::to_owned).into(),
                ));
            }
        }
        self.links
            .push(Link::new("clients", coordinator, seed).await?);
        Ok(())
    }

    /// What all clients' connections pass.
    pub(crate) fn clients_link(&self) -> &Link {
        self.links.last().expect("it is made at the start")
    }

    /// A client, as applications use it.
    ///
    /// # Errors
    /// Never: the address is good.
    pub(crate) fn client(&self) -> Result<Client> {
        Ok(Client::builder(self.clients_link().address())
            .connect_timeout(Duration::from_secs(2))
            .call_timeout(Duration::from_secs(8))
            .retry_for(Duration::from_secs(2))
            .build()?)
    }

    /// Where nothing stands between.
    ///
    /// # Errors
    /// Never: the address is good.
    pub(crate) fn inspector(&self) -> Result<Client> {
        Ok(Client::builder(&self.address)
            .connect_timeout(Duration::from_secs(2))
            .call_timeout(Duration::from_secs(5))
            .retry_for(Duration::from_secs(1))
            .build()?)
    }

    /// The operator's service.
    pub(crate) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    /// The banks' names.
    pub(crate) fn names(&self) -> Vec<String> {
        self.banks.iter().map(|bank| bank.name.clone()).collect()
    }

    /// All of our own processes.
    pub(crate) fn units(&self) -> impl Iterator<Item = &Unit> {
        std::iter::once(&self.coordinator).chain(&self.agents)
    }

    /// Waits until the coordinator serves.
    ///
    /// # Errors
    /// Where that takes too long.
    pub(crate) async fn serves(&self) -> Result<()> {
        let mut health = HealthClient::new(self.channel.clone());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = health.check(HealthCheckRequest::default()).await;
            if answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the coordinator does not serve after {PATIENCE:?}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until each bank has all of its agents' sessions.
    ///
    /// # Errors
    /// Where that takes too long.
    pub(crate) async fn connected(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let request = v1::ListParticipantsRequest::default();
            let participants = match self.admin().list_participants(request).await {
                Ok(answer) => answer.into_inner().participants,
                Err(_) => Vec::new(),
            };
            let sessions = |name: &str| {
                let mut found = participants.iter();
                let found = found.find(|participant| participant.name == name);
                found.map_or(0, |found| found.sessions.len())
            };
            let missing = self.banks.iter().enumerate().find(|(number, bank)| {
                let of_bank = |unit: &&Unit| unit.role == UnitRole::Agent(*number);
                sessions(&bank.name) < self.agents.iter().filter(of_bank).count()
            });
            let Some((_, missing)) = missing else {
                return Ok(());
            };
            if Instant::now() > deadline {
                bail!("{} lacks agents after {PATIENCE:?}", missing.name);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn coordinator_arguments(data: &Path, listen: &str) -> Vec<String> {
    let data = data.display().to_string();
    [
        "coordinator",
        "--data-directory",
        &data,
        "--listen",
        listen,
        // Small ones, so that the log is rotated, checkpointed and trimmed all the time.
        "--segment-bytes",
        "1048576",
    ]
    .map(str::to_owned)
    .into()
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of plain letters")
}

/// Transactions in flight, as the clients know.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Mutex<u64>);

impl InFlight {
    pub(crate) fn number(&self) -> u64 {
        *self.0.lock()
    }

    pub(crate) fn begin(self: &Arc<Self>) -> Flying {
        *self.0.lock() += 1;
        Flying(Arc::clone(self))
    }
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Flying(Arc<InFlight>);

impl Drop for Flying {
    fn drop(&mut self) {
        *self.0.0.lock() -= 1;
    }
}
