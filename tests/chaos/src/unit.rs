//! One of our own processes: how it is started, and how it ended.

use std::{
    env, fs,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use tokio::sync::Mutex;
use unanimity_tests::process::Process;

/// A process that can be started again and again.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) role: UnitRole,
    arguments: Vec<String>,
    log: PathBuf,
    /// Whoever does something to it holds this.
    pub(crate) running: Mutex<Running>,
}

/// Which of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnitRole {
    Coordinator,
    /// Of this bank.
    Agent(usize),
}

/// A point at which a process kills itself, and the how manyth time there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Armed {
    pub(crate) point: &'static str,
    pub(crate) hit: u32,
}

/// It as it runs now.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) armed: Option<Armed>,
    /// What its end would be put down to: a fault that makes it end by itself.
    pub(crate) excused: bool,
}

/// How one ended that nobody here killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// At the point that it was armed with.
    Failpoint(&'static str),
    /// With the code that says that its log failed, while its disk did.
    DiskFailed,
    /// As it never should.
    Unexpected(String),
}

/// "A write or a sync of the log failed, or hung".
const LOG_FAILED: i32 = 74;

impl Unit {
    /// Starts it.
    pub(crate) fn start(
        directory: &Path,
        name: &str,
        role: UnitRole,
        arguments: Vec<String>,
    ) -> Self {
        let log = directory.join(format!("{name}.log"));
        Self {
            running: Mutex::new(launch(&arguments, &log, None)),
            name: name.into(),
            role,
            arguments,
            log,
        }
    }

    /// Starts it again after its end.
    pub(crate) fn restart(&self, running: &mut Running, armed: Option<Armed>) {
        *running = launch(&self.arguments, &self.log, armed);
    }

    /// How it ended by itself; `None` while it runs.
    pub(crate) fn ended(&self, running: &mut Running) -> Option<End> {
        let status = running.process.ended()?;
        Some(match &running.armed {
            Some(armed) if status.signal() == Some(9) && self.said_killed(armed) => {
                End::Failpoint(armed.point)
            }
            _ if status.code() == Some(LOG_FAILED) && running.excused => End::DiskFailed,
            _ => End::Unexpected(self.describe(status)),
        })
    }

    fn said_killed(&self, armed: &Armed) -> bool {
        let line = format!("failpoint {}: killed", armed.point);
        tail(&self.log).iter().any(|said| said.contains(&line))
    }

    fn describe(&self, status: ExitStatus) -> String {
        format!("{status}: {}", tail(&self.log).join(" | "))
    }

    /// A thread that panicked may leave the process running.
    pub(crate) fn panicked(&self) -> Option<String> {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        log.lines()
            .find(|line| line.contains("panicked at"))
            .map(str::to_owned)
    }
}

/// This very program in another role; also where its file was replaced meanwhile.
fn launch(arguments: &[String], log: &Path, armed: Option<Armed>) -> Running {
    let mut command = Command::new("/proc/self/exe");
    // The user's own settings for a coordinator or an agent are not meant for these.
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("UNANIMITY_") {
            command.env_remove(name);
        }
    }
    command.env_remove("FAILPOINTS").arg0("unanimity-chaos");
    if let Some(Armed { point, hit }) = &armed {
        command.env("FAILPOINTS", format!("{point}={}*off->return", hit - 1));
    }
    Running {
        process: Process::start(command.args(arguments), log),
        armed,
        excused: false,
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> Vec<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let Ok(mut file) = fs::File::open(log) else {
        return Vec::new();
    };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = Vec::new();
    let read = file
        .seek(SeekFrom::Start(length.saturating_sub(4_096)))
        .and_then(|_| file.read_to_end(&mut bytes));
    if read.is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines[lines.len().saturating_sub(12)..].to_vec()
}
