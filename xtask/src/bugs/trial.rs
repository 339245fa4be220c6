//! One trial: a harness is built with a bug, or without, and run for a bounded time.

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Seek as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{harness::Harness, table::Bug};
use crate::harness::root;

/// The first build of a harness builds all that it depends on.
const BUILD_LIMIT: Duration = Duration::from_secs(15 * 60);
const RUN_LIMIT: Duration = Duration::from_secs(5 * 60);

/// How it went.
pub(crate) struct Trial {
    pub(crate) verdict: Verdict,
    pub(crate) build_seconds: f64,
    pub(crate) run_seconds: f64,
    /// What the harness said.
    pub(crate) log: PathBuf,
}

/// What became of a bug.
pub(crate) enum Verdict {
    Caught,
    /// And why it counts as not caught.
    Escaped(String),
}

impl Trial {
    pub(crate) fn is_caught(&self) -> bool {
        matches!(self.verdict, Verdict::Caught)
    }

    /// In a line.
    pub(crate) fn told(&self, bug: &Bug) -> String {
        let verdict = match &self.verdict {
            Verdict::Caught => format!("caught by {}: {}", bug.harness.name(), bug.shows),
            Verdict::Escaped(why) => format!("ESCAPED {}: {why}", bug.harness.name()),
        };
        format!(
            "{verdict} (build {:.1} s, run {:.1} s)",
            self.build_seconds, self.run_seconds
        )
    }
}

/// Tries a bug.
///
/// # Errors
/// Where it can't be built.
pub(crate) fn with(bug: &Bug) -> Result<Trial> {
    let (build_seconds, run) = build_and_run(bug.harness, &[bug.shows], Some(bug.name))?;
    let verdict = match run.status {
        None => Verdict::Escaped(format!("it did not end within {} s", RUN_LIMIT.as_secs())),
        Some(status) => judged(bug, status, &run.output),
    };
    Ok(Trial {
        verdict,
        build_seconds,
        run_seconds: run.seconds,
        log: run.log,
    })
}

/// A harness fails by its own exit code, and names what was broken.
fn judged(bug: &Bug, status: ExitStatus, output: &str) -> Verdict {
    if status.success() {
        return Verdict::Escaped("the harness found nothing wrong".into());
    }
    if status.code() != Some(bug.harness.failure_code()) {
        return Verdict::Escaped(format!("the harness broke down instead: {status}"));
    }
    if bug.harness.names(bug.shows, output) {
        Verdict::Caught
    } else {
        Verdict::Escaped(format!(
            "the harness failed without a word of {}",
            bug.shows
        ))
    }
}

/// Runs a harness on the code as it is.
///
/// # Errors
/// Where it fails, or has nothing to say of what it is to catch.
pub(crate) fn without(harness: Harness, patterns: &[&str]) -> Result<Trial> {
    let (build_seconds, run) = build_and_run(harness, patterns, None)?;
    if !run.status.is_some_and(|status| status.success()) {
        let what = match run.status {
            Some(status) => format!("fails ({status})"),
            None => format!("does not end within {} s", RUN_LIMIT.as_secs()),
        };
        bail!(
            "{} {what} on the code as it is, so it can catch nothing; its output: {}",
            harness.name(),
            run.log.display()
        );
    }
    if let Some(missing) = patterns.iter().find(|p| !harness.has(p, &run.output)) {
        bail!(
            "{} has no test {missing}; see {}",
            harness.name(),
            run.log.display()
        );
    }
    Ok(Trial {
        verdict: Verdict::Caught,
        build_seconds,
        run_seconds: run.seconds,
        log: run.log,
    })
}

/// A run that ended, or was ended.
struct Run {
    /// None: its time was up.
    status: Option<ExitStatus>,
    seconds: f64,
    output: String,
    log: PathBuf,
}

fn build_and_run(harness: Harness, patterns: &[&str], bug: Option<&str>) -> Result<(f64, Run)> {
    let name = match bug {
        Some(bug) => bug.to_owned(),
        None => format!("without {}", harness.label()),
    };
    let build = timed(cargo(&harness.build(), bug), &name, BUILD_LIMIT)?;
    if !build.status.is_some_and(|status| status.success()) {
        bail!(
            "{} can't be built; see {}",
            harness.name(),
            build.log.display()
        );
    }
    let run = timed(cargo(&harness.run(patterns), bug), &name, RUN_LIMIT)?;
    Ok((build.seconds, run))
}

fn cargo(arguments: &str, bug: Option<&str>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(arguments.split_whitespace())
        .current_dir(root())
        .env_remove("RUST_BACKTRACE")
        .env("UNANIMITY_BUG", bug.unwrap_or_default());
    command
}

/// Runs a command in a process group of its own, which is ended as a whole when its time is up.
fn timed(mut command: Command, name: &str, limit: Duration) -> Result<Run> {
    let log = log_path(name)?;
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&log)?;
    let started = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file.try_clone()?)
        .process_group(0)
        .spawn()
        .context("cargo can't be run")?;
    let status = wait(child, limit)?;
    let seconds = started.elapsed().as_secs_f64();
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(Run {
        status,
        seconds,
        output: String::from_utf8_lossy(&bytes).into_owned(),
        log,
    })
}

fn log_path(name: &str) -> Result<PathBuf> {
    let directory = root().join("target/bug/trials");
    fs::create_dir_all(&directory)?;
    Ok(Path::new(&directory).join(format!("{}.log", name.replace(' ', "-"))))
}

fn wait(mut child: Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let group = child.id();
    let (sender, ended) = channel();
    thread::spawn(move || _ = sender.send(child.wait()));
    match ended.recv_timeout(limit) {
        Ok(status) => Ok(Some(status?)),
        Err(RecvTimeoutError::Timeout) => {
            let mut kill = Command::new("kill");
            kill.args(["-KILL", "--", &format!("-{group}")]).status()?;
            _ = ended.recv();
            Ok(None)
        }
        Err(RecvTimeoutError::Disconnected) => bail!("nobody waits for the harness any more"),
    }
}
