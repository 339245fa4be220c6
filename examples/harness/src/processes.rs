//! The processes of a system: one coordinator, agents, and services.
//!
//! They are this very executable in other roles, so that the example needs nothing beside it. Anybody else starts
//! `unanimity-coordinator --data-directory …` and `unanimity-participant sql --config …`, with the same files.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use unanimity_proto::v1::{self, admin_service_client::AdminServiceClient};

use crate::address;

/// How long a process may take until it does its work.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a process may take to end when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two looks at something that is about to change.
const POLL: Duration = Duration::from_millis(10);

/// A coordinator with the processes around it. They end when this is dropped.
pub struct System {
    directory: PathBuf,
    address: String,
    log_id: String,
    channel: Channel,
    /// The coordinator first.
    processes: Vec<Process>,
}

/// A process of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId(usize);

impl ProcessId {
    /// The coordinator.
    pub const COORDINATOR: Self = Self(0);
}

impl System {
    /// Starts a coordinator, with its files in `directory`, and waits until it serves.
    ///
    /// # Errors
    /// Where it doesn't.
    pub async fn start(directory: &Path) -> Result<Self> {
        let listen = address::to_listen_on()?;
        let address = format!("http://{listen}");
        let log = path(&directory.join("coordinator-log"))?;
        let mut system = Self {
            directory: directory.to_owned(),
            log_id: String::new(),
            channel: Endpoint::from_shared(address.clone())?
                .tcp_nodelay(true)
                .connect_lazy(),
            address,
            processes: Vec::new(),
        };
        system.add(
            "coordinator",
            &["coordinator", "--data-directory", &log, "--listen", &listen],
        )?;
        system.wait_until_serving().await?;
        let request = v1::GetCoordinatorRequest {};
        let coordinator = system.admin().get_coordinator(request).await?;
        system.log_id = coordinator.into_inner().log_id;
        Ok(system)
    }

    /// Starts this executable with other arguments, and waits for nothing.
    ///
    /// # Errors
    /// Where it can't be started.
    pub fn add(&mut self, name: &str, arguments: &[&str]) -> Result<ProcessId> {
        let process = Process::start(&self.directory, name, arguments)?;
        self.processes.push(process);
        Ok(ProcessId(self.processes.len() - 1))
    }

    /// Starts this executable in a role that reads a configuration file, and waits for nothing.
    ///
    /// # Errors
    /// Where it can't be started.
    pub fn add_configured(
        &mut self,
        name: &str,
        role: &[&str],
        configuration: &str,
    ) -> Result<ProcessId> {
        let file = self.directory.join(format!("{name}.toml"));
        fs::write(&file, configuration)?;
        self.add(name, &[role, &["--config", &path(&file)?]].concat())
    }

    /// Waits until a process listens.
    ///
    /// # Errors
    /// Where it ends, or takes too long.
    pub async fn wait_for_listener(&mut self, id: ProcessId, address: &str) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(address).await.is_err() {
            self.processes[id.0].check(deadline)?;
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until these processes, which have their participants' names, are connected.
    ///
    /// # Errors
    /// Where one ends, or takes too long.
    pub async fn wait_for_participants(&mut self, participants: &[ProcessId]) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let request = v1::ListParticipantsRequest::default();
            let answer = self.admin().list_participants(request).await?.into_inner();
            let is_missing = |process: &Process| {
                let mut found = answer.participants.iter();
                !found.any(|found| found.name == process.name && !found.sessions.is_empty())
            };
            let mut missing = participants.iter().map(|id| id.0);
            let Some(missing) = missing.find(|id| is_missing(&self.processes[*id])) else {
                return Ok(());
            };
            self.processes[missing].check(deadline)?;
            sleep(POLL).await;
        }
    }

    /// The coordinator's address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Identity of the coordinator's log: the ids of all its transactions begin with `u1.`, this, and a dot.
    #[must_use]
    pub fn log_id(&self) -> &str {
        &self.log_id
    }

    /// Kills a process with no warning, and waits until it is gone.
    ///
    /// # Errors
    /// Where it can't be killed.
    pub async fn kill(&mut self, id: ProcessId) -> Result<()> {
        Ok(self.processes[id.0].child.kill().await?)
    }

    /// Starts a killed process again, on the same data. A coordinator serves when this returns.
    ///
    /// # Errors
    /// Where it can't be started.
    pub async fn restart(&mut self, id: ProcessId) -> Result<()> {
        self.processes[id.0].restart()?;
        match id {
            ProcessId::COORDINATOR => self.wait_until_serving().await,
            _ => Ok(()),
        }
    }

    /// Asks all processes to end, the last one first, and waits for them.
    ///
    /// # Errors
    /// Where a signal can't be sent.
    pub async fn stop(mut self) -> Result<()> {
        for process in self.processes.iter_mut().rev() {
            process.stop().await?;
        }
        Ok(())
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    async fn wait_until_serving(&mut self) -> Result<()> {
        let mut health = HealthClient::new(self.channel.clone());
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let answer = health.check(HealthCheckRequest::default()).await;
            if answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving) {
                return Ok(());
            }
            self.processes[0].check(deadline)?;
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
/// however we end: see [`crate::role`].
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

fn path(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.with_context(|| format!("{} is not UTF-8", path.display()))
}
