//! The processes of a system: one coordinator, and one agent for each bank.
//!
//! They are this very executable in other roles, so that the example needs nothing beside it. Anybody else starts
//! `unanimity-coordinator --data-directory …` and `unanimity-participant sql --config …`, with the same files.

use std::{
    env, fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use unanimity_proto::v1::{self, admin_service_client::AdminServiceClient};

use crate::bank::Bank;

/// How long a process may take until it does its work.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a process may take to end when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two looks at something that is about to change.
const POLL: Duration = Duration::from_millis(10);

/// A coordinator with its agents. They end when this is dropped.
pub(crate) struct System {
    address: String,
    log_id: String,
    coordinator: Process,
    agents: Vec<Process>,
    channel: Channel,
}

/// Which process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Coordinator,
    /// By the number of the bank.
    Agent(usize),
}

impl System {
    /// Starts all processes, with their files in `directory`, and waits until they do their work.
    pub(crate) async fn start(directory: &Path, banks: &[Bank], clients: usize) -> Result<Self> {
        let listen = format!("127.0.0.1:{}", free_port()?);
        let address = format!("http://{listen}");
        let log = directory.join("coordinator-log");
        let arguments = [
            "coordinator",
            "--data-directory",
            &path(&log)?,
            "--listen",
            &listen,
        ];
        let mut system = Self {
            coordinator: Process::start(directory, "coordinator", &arguments)?,
            agents: Vec::new(),
            log_id: String::new(),
            channel: Endpoint::from_shared(address.clone())?
                .tcp_nodelay(true)
                .connect_lazy(),
            address,
        };
        // Each client has one branch open at a time, and the agent looks around on connections of its own.
        let connections = u32::try_from(clients)?.saturating_add(4);
        for bank in banks {
            let file = directory.join(format!("{}.toml", bank.name));
            fs::write(
                &file,
                bank.agent_configuration(&system.address, connections),
            )?;
            let arguments = ["participant", "sql", "--config", &path(&file)?];
            system
                .agents
                .push(Process::start(directory, &bank.name, &arguments)?);
        }
        system.wait_until_serving().await?;
        let request = v1::GetCoordinatorRequest {};
        let coordinator = system.admin().get_coordinator(request).await?;
        system.log_id = coordinator.into_inner().log_id;
        system.wait_for_agents().await?;
        Ok(system)
    }

    /// The coordinator's address.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// How many agents there are.
    pub(crate) fn agents(&self) -> usize {
        self.agents.len()
    }

    /// Kills a process with no warning, and waits until it is gone.
    pub(crate) async fn kill(&mut self, role: Role) -> Result<()> {
        Ok(self.process(role).child.kill().await?)
    }

    /// Starts a killed process again, on the same data. A coordinator serves when this returns.
    pub(crate) async fn restart(&mut self, role: Role) -> Result<()> {
        self.process(role).restart()?;
        match role {
            Role::Coordinator => self.wait_until_serving().await,
            Role::Agent(_) => Ok(()),
        }
    }

    /// Asks all processes to end, and waits for them.
    pub(crate) async fn stop(mut self) -> Result<()> {
        for agent in &mut self.agents {
            agent.stop().await?;
        }
        self.coordinator.stop().await
    }

    /// Identity of the coordinator's log: the ids of all its transactions begin with `u1.`, this, and a dot.
    pub(crate) fn log_id(&self) -> &str {
        &self.log_id
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    fn process(&mut self, role: Role) -> &mut Process {
        match role {
            Role::Coordinator => &mut self.coordinator,
            Role::Agent(number) => &mut self.agents[number],
        }
    }

    async fn wait_until_serving(&mut self) -> Result<()> {
        let mut health = HealthClient::new(self.channel.clone());
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let answer = health.check(HealthCheckRequest::default()).await;
            if answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving) {
                return Ok(());
            }
            self.coordinator.check(deadline)?;
            sleep(POLL).await;
        }
    }

    async fn wait_for_agents(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let request = v1::ListParticipantsRequest::default();
            let answer = self.admin().list_participants(request).await?.into_inner();
            let connected = |agent: &Process| {
                let mut participants = answer.participants.iter();
                participants.any(|found| found.name == agent.name && !found.sessions.is_empty())
            };
            let Some(missing) = self.agents.iter().position(|agent| !connected(agent)) else {
                return Ok(());
            };
            self.agents[missing].check(deadline)?;
            sleep(POLL).await;
        }
    }
}

/// A child process with its command line, so that it can be started again.
struct Process {
    name: String,
    arguments: Vec<String>,
    log: PathBuf,
    child: Child,
}

impl Process {
    fn start(directory: &Path, name: &str, arguments: &[&str]) -> Result<Self> {
        let arguments: Vec<String> = arguments.iter().copied().map(str::to_owned).collect();
        let log = directory.join(format!("{name}.log"));
        Ok(Self {
            child: spawn(&arguments, &log)?,
            name: name.to_owned(),
            arguments,
            log,
        })
    }

    fn restart(&mut self) -> Result<()> {
        self.child = spawn(&self.arguments, &self.log)?;
        Ok(())
    }

    /// Fails where the process ended by itself, or the deadline has passed, with the end of its log.
    fn check(&mut self, deadline: Instant) -> Result<()> {
        let trouble = match self.child.try_wait()? {
            Some(status) => format!("ended with {status}"),
            None if Instant::now() > deadline => "isn't ready".to_owned(),
            None => return Ok(()),
        };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(10)..].join("\n");
        bail!("{} {trouble}:\n{last}", self.name)
    }

    async fn stop(&mut self) -> Result<()> {
        if let Some(id) = self.child.id() {
            let id = Pid::from_raw(i32::try_from(id)?).context("a process has a number")?;
            kill_process(id, Signal::TERM)?;
        }
        if timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }
}

/// This executable in another role. The child reads its standard input to the end and then ends itself, so that it never outlives us,
/// however we end: see [`end_with_parent`].
fn spawn(arguments: &[String], log: &Path) -> Result<Child> {
    let log = fs::File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(env::current_exe()?);
    // The user's own settings for a coordinator or an agent are not meant for these.
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("UNANIMITY_") {
            command.env_remove(name);
        }
    }
    let child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        // Ctrl-C is for us alone; we then end the children in our order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    child.context("starting a child process")
}

/// For a child: ends the process when the parent is gone, which closes the pipe to our standard input.
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        // An error means just the same.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(1);
    });
}

/// A port to listen on, now and after a restart. It lies below those that the system gives to outgoing connections, which could take it while
/// the coordinator is down.
fn free_port() -> Result<u16> {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let mut candidates = (0..1_000).map(|_| rand::random_range(10_000..32_000));
    candidates.find(free).context("no port is free")
}

fn path(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.with_context(|| format!("{} is not UTF-8", path.display()))
}
