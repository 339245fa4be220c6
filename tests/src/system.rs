//! A coordinator and its agents, from the built programs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use unanimity_client::Client;
use unanimity_proto::v1::{
    self, admin_service_client::AdminServiceClient,
    transaction_service_client::TransactionServiceClient,
};

use crate::{
    bank::Bank,
    binaries,
    patience::{PATIENCE, eventually},
    port,
    process::Process,
    watchdog,
};

/// A directory for the files of one test.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// A new one.
    ///
    /// # Panics
    /// Where there is no room.
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        let directory = TempDir::with_prefix("unanimity-test-").expect("a temporary directory");
        watchdog::directory(directory.path());
        Self(directory)
    }

    /// A file or directory in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// A test that failed shows what the processes had to say.
impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for file in fs::read_dir(self.0.path()).into_iter().flatten().flatten() {
            let path = file.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let text = fs::read_to_string(&path).unwrap_or_default();
                eprintln!("---- {} ----\n{text}", path.display());
            }
        }
    }
}

/// How a coordinator is started.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The directory of its log.
    pub data: PathBuf,
    /// Where what it prints goes.
    pub output: PathBuf,
    /// The port it listens on, also after a restart.
    pub port: u16,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// What runs it: strace and its options, say.
    pub wrapper: Vec<String>,
}

impl Setup {
    /// A plain one, with its files in `scratch`.
    pub fn new(scratch: &Scratch) -> Self {
        Self {
            data: scratch.path("coordinator"),
            output: scratch.path("coordinator.log"),
            port: port::free(),
            arguments: Vec::new(),
            wrapper: Vec::new(),
        }
    }

    /// With further arguments.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Starts it, and waits for nothing.
    pub fn launch(&self) -> Process {
        let program = binaries::path("unanimity-coordinator");
        let mut command = match self.wrapper.split_first() {
            None => Command::new(program),
            Some((wrapper, options)) => {
                let mut command = Command::new(wrapper);
                command.args(options).arg(program);
                command
            }
        };
        command
            .arg("--data-directory")
            .arg(&self.data)
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", self.port));
        command.args(&self.arguments);
        Process::start(&mut command, &self.output)
    }

    /// The coordinator's address.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// A running coordinator.
#[derive(Debug)]
pub struct Coordinator {
    /// How it was started.
    pub setup: Setup,
    /// The process; strace's, where that runs it.
    pub process: Process,
    channel: Channel,
}

impl Coordinator {
    /// A plain one, with its files in `scratch`, that serves.
    pub async fn start(scratch: &Scratch) -> Self {
        Self::start_with(Setup::new(scratch)).await
    }

    /// One that serves.
    ///
    /// # Panics
    /// Where it doesn't come to that.
    pub async fn start_with(setup: Setup) -> Self {
        let endpoint = Endpoint::from_shared(setup.address())
            .expect("an address")
            .tcp_nodelay(true);
        let process = setup.launch();
        let mut coordinator = Self {
            process,
            channel: endpoint.connect_lazy(),
            setup,
        };
        coordinator.serves().await;
        coordinator
    }

    /// Kills it and starts it again on the same data and port.
    pub async fn kill_and_restart(&mut self) {
        self.process.kill();
        self.restart().await;
    }

    /// Starts it again after its end, and waits until it serves.
    pub async fn restart(&mut self) {
        self.process = self.setup.launch();
        self.serves().await;
    }

    /// Its address.
    pub fn address(&self) -> String {
        self.setup.address()
    }

    /// A client, as applications use it.
    ///
    /// # Panics
    /// Never: the address is good.
    pub async fn client(&self) -> Client {
        Client::connect(self.address())
            .await
            .expect("a good address")
    }

    /// The operator's service.
    pub fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    /// The bare transaction service, which shows statuses as they are.
    pub fn transactions(&self) -> TransactionServiceClient<Channel> {
        TransactionServiceClient::new(self.channel.clone())
    }

    /// The identity of its log.
    ///
    /// # Panics
    /// Where it is down.
    pub async fn log_id(&self) -> String {
        let answer = self
            .admin()
            .get_coordinator(v1::GetCoordinatorRequest {})
            .await;
        answer.expect("the coordinator serves").into_inner().log_id
    }

    /// The prepared branches that it knows of.
    ///
    /// # Panics
    /// Where it is down.
    pub async fn in_doubt(&self) -> Vec<v1::InDoubt> {
        let request = v1::ListInDoubtBranchesRequest {
            page_size: 1_000,
            ..Default::default()
        };
        let answer = self.admin().list_in_doubt_branches(request).await;
        answer
            .expect("the coordinator serves")
            .into_inner()
            .branches
    }

    /// A transaction as it stands.
    ///
    /// # Panics
    /// Where it can't be looked up.
    pub async fn transaction(&self, id: &str) -> v1::Transaction {
        let request = v1::GetTransactionRequest {
            transaction_id: id.into(),
        };
        let answer = self.transactions().get_transaction(request).await;
        answer
            .expect("it can be looked up")
            .into_inner()
            .transaction
            .expect("it is there")
    }

    /// Waits until so many agents of a participant have a session.
    pub async fn agents(&self, participant: &str, number: usize) {
        crate::patience::becomes(&format!("sessions of {participant}"), number, || async {
            let answer = self
                .admin()
                .list_participants(v1::ListParticipantsRequest::default())
                .await;
            let participants = answer
                .map(|answer| answer.into_inner().participants)
                .unwrap_or_default();
            participants
                .iter()
                .find(|found| found.name == participant)
                .map_or(0, |found| found.sessions.len())
        })
        .await;
    }

    /// Waits until it serves.
    ///
    /// # Panics
    /// Where it ends instead, or takes too long.
    pub async fn serves(&mut self) {
        let health = HealthClient::new(self.channel.clone());
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let answer = health.clone().check(HealthCheckRequest::default()).await;
            if answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving) {
                return;
            }
            let ended = self.process.ended();
            assert!(
                ended.is_none(),
                "the coordinator ended, {ended:?}:\n{}",
                self.process.log()
            );
            assert!(
                std::time::Instant::now() < deadline,
                "not serving:\n{}",
                self.process.log()
            );
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

/// An agent of a bank, or of a service.
#[derive(Debug)]
pub struct Agent {
    /// The process.
    pub process: Process,
    kind: &'static str,
    name: String,
    configuration: PathBuf,
    output: PathBuf,
    arguments: Vec<String>,
}

impl Agent {
    /// Starts one, and waits until the coordinator has its session.
    pub async fn start(scratch: &Scratch, coordinator: &Coordinator, bank: &Bank) -> Self {
        let agent = Self::launch(scratch, &coordinator.address(), bank, &[]);
        agent.connects(coordinator).await;
        agent
    }

    /// Starts one with further arguments, and waits for nothing.
    pub fn launch(scratch: &Scratch, coordinator: &str, bank: &Bank, arguments: &[&str]) -> Self {
        let configuration = bank.agent_configuration(coordinator);
        Self::run(scratch, "sql", &bank.name, &configuration, arguments)
    }

    /// Starts one around a service, and waits until the coordinator has its session. `configuration` is what of it is neither the name nor
    /// the coordinator's address.
    pub async fn http(
        scratch: &Scratch,
        coordinator: &Coordinator,
        name: &str,
        configuration: &str,
    ) -> Self {
        let address = coordinator.address();
        let configuration = format!("name = {name:?}\ncoordinator = {address:?}\n{configuration}");
        let agent = Self::run(scratch, "http", name, &configuration, &[]);
        agent.connects(coordinator).await;
        agent
    }

    fn run(
        scratch: &Scratch,
        kind: &'static str,
        name: &str,
        text: &str,
        arguments: &[&str],
    ) -> Self {
        let configuration = scratch.path(&format!("{name}.toml"));
        fs::write(&configuration, text).expect("the directory is ours");
        let output = scratch.path(&format!("{name}.log"));
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        Self {
            process: run(kind, &configuration, &output, &arguments),
            kind,
            name: name.into(),
            configuration,
            output,
            arguments,
        }
    }

    /// Waits until the coordinator has its session.
    pub async fn connects(&self, coordinator: &Coordinator) {
        coordinator.agents(&self.name, 1).await;
    }

    /// Starts it again after its end.
    pub fn restart(&mut self) {
        self.process = run(
            self.kind,
            &self.configuration,
            &self.output,
            &self.arguments,
        );
    }

    /// Kills it, and waits until the coordinator has noticed.
    pub async fn kill(&mut self, coordinator: &Coordinator) {
        self.process.kill();
        coordinator.agents(&self.name, 0).await;
    }
}

fn run(kind: &str, configuration: &Path, output: &Path, arguments: &[String]) -> Process {
    let mut command = Command::new(binaries::path("unanimity-participant"));
    command
        .args([kind, "--config"])
        .arg(configuration)
        .args(arguments);
    Process::start(&mut command, output)
}

/// Waits until a transaction has ended, and shows it.
///
/// # Panics
/// Where it doesn't end.
pub async fn ended(coordinator: &Coordinator, id: &str) -> v1::Transaction {
    use v1::TransactionState::{Aborted, Committed, Heuristic};
    eventually(&format!("the end of {id}"), || async {
        let request = v1::GetTransactionRequest {
            transaction_id: id.into(),
        };
        let answer = coordinator.transactions().get_transaction(request).await;
        let transaction = answer.ok()?.into_inner().transaction?;
        [Committed, Aborted, Heuristic]
            .contains(&transaction.state())
            .then_some(transaction)
    })
    .await
}
