//! Running the engine on the targets, two at a time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
};

use anyhow::{Context, Result, bail};
use unanimity_fuzz::{TARGET_VARIABLE, Target, corpus};

use crate::arguments::{Arguments, Usage};

/// Inputs of a target that are kept, at most.
const KEPT: usize = 32;
/// The longest that is kept.
const KEPT_BYTES: u64 = 512;

/// What a search found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) target: &'static str,
    pub(crate) executions: u64,
    /// Inputs that each reach what no other does.
    pub(crate) inputs: u64,
    /// Places in the code that were reached.
    pub(crate) coverage: u64,
    /// Something broke the promise.
    pub(crate) broken: bool,
}

pub(crate) struct Search {
    engine: PathBuf,
    scratch: tempfile::TempDir,
    seconds: u32,
    seed: u32,
    keep: bool,
}

impl Search {
    pub(crate) fn new(arguments: &Arguments) -> Result<Self> {
        let engine = arguments.engine.clone().filter(|path| path.is_file());
        let Some(engine) = engine else {
            return Err(Usage(
                "--engine: the program that searches is not there; `cargo xtask fuzz` builds it and starts this one with it".into(),
            )
            .into());
        };
        Ok(Self {
            engine,
            scratch: tempfile::TempDir::with_prefix("unanimity-fuzz-")?,
            seconds: arguments.seconds.get(),
            seed: arguments.seed.get(),
            keep: arguments.keep,
        })
    }

    /// Searches for each of them.
    pub(crate) fn all(&self, targets: &[&'static Target]) -> Result<Vec<Found>> {
        let waiting = Mutex::new(targets.iter());
        let next = || {
            let mut waiting = waiting
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            waiting.next()
        };
        let work = || -> Result<Vec<Found>> {
            let mut found = Vec::new();
            while let Some(target) = next() {
                found.push(self.one(target)?);
            }
            Ok(found)
        };
        let mut found = thread::scope(|scope| {
            let workers = [scope.spawn(work), scope.spawn(work)];
            let done = workers.map(|worker| worker.join().expect("a worker doesn't panic"));
            done.into_iter().collect::<Result<Vec<_>>>()
        })?
        .concat();
        found.sort_by_key(|found| found.target);
        Ok(found)
    }

    fn one(&self, target: &'static Target) -> Result<Found> {
        eprintln!("{}: {}", target.name, target.promise);
        let directory = self.scratch.path().join(target.name);
        let (own, seeds) = (directory.join("found"), directory.join("seeds"));
        fs::create_dir_all(&own)?;
        fs::create_dir_all(&seeds)?;
        for (at, seed) in (target.seeds)().iter().enumerate() {
            fs::write(seeds.join(at.to_string()), seed)?;
        }
        let kept = corpus::directory(target);
        fs::create_dir_all(&kept)?;
        fs::create_dir_all(corpus::crashes())?;
        let log = directory.join("log");
        let finished = self
            .engine(target, &log)?
            .arg(format!("-max_total_time={}", self.seconds))
            .arg(format!("-seed={}", self.seed))
            .args(["-max_len=4096", "-timeout=10", "-rss_limit_mb=2048"])
            .arg("-print_final_stats=1")
            .arg(artifacts(target))
            .args([&own, &seeds, &kept])
            .status()
            .with_context(|| format!("{} can't be run", self.engine.display()))?;
        let told = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let mut found = read_log(target.name, &told);
        if !finished.success() {
            found.broken = true;
            tell(target, &told);
        } else if found.executions == 0 {
            bail!("{}: the engine ran nothing:\n{told}", target.name);
        } else if self.keep {
            self.keep(target, &directory, [&own, &seeds])?;
        }
        Ok(found)
    }

    fn engine(&self, target: &Target, log: &Path) -> Result<Command> {
        let mut command = Command::new(&self.engine);
        command
            .env(TARGET_VARIABLE, target.name)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(log)?);
        Ok(command)
    }

    /// Keeps those of the inputs that reach most, as few and as small as will do: what is left out is soon found again.
    fn keep(&self, target: &Target, directory: &Path, found: [&PathBuf; 2]) -> Result<()> {
        let (kept, merged) = (corpus::directory(target), directory.join("merged"));
        fs::create_dir_all(&merged)?;
        let status = self
            .engine(target, &directory.join("merge"))?
            // By places alone, not by how often each was passed: the corpus is to stay small.
            .args(["-set_cover_merge=1", "-use_counters=0", "-use_cmp=0"])
            .arg(&merged)
            .args(found)
            .arg(&kept)
            .status()?;
        if !status.success() {
            bail!(
                "{}: the engine can't merge what it found: {status}",
                target.name
            );
        }
        for old in corpus::files(&kept, "")? {
            fs::remove_file(old)?;
        }
        for path in best(&merged)? {
            let name = path.file_name().context("a file has a name")?;
            fs::copy(&path, kept.join(name))?;
        }
        Ok(())
    }
}

/// The engine writes first what reaches most.
fn best(merged: &Path) -> Result<Vec<PathBuf>> {
    let mut inputs = Vec::new();
    for path in corpus::files(merged, "")? {
        let about = fs::metadata(&path)?;
        if about.len() <= KEPT_BYTES {
            inputs.push((about.modified()?, path));
        }
    }
    inputs.sort();
    Ok(inputs
        .into_iter()
        .take(KEPT)
        .map(|(_, path)| path)
        .collect())
}

fn artifacts(target: &Target) -> String {
    let start = corpus::crashes().join(format!("{}-", target.name));
    format!("-artifact_prefix={}", start.display())
}

/// The engine tells how far it is in lines such as `#2097 DONE cov: 57 ft: 83 corp: 11/64b …`, and at the end its statistics.
fn read_log(target: &'static str, told: &str) -> Found {
    let after = |line: &str, label: &str| {
        let (_, rest) = line.split_once(label)?;
        let digits = rest
            .trim_start()
            .split(|c: char| !c.is_ascii_digit())
            .next()?;
        digits.parse::<u64>().ok()
    };
    let last = |label: &str| told.lines().rev().find_map(|line| after(line, label));
    let ran = last("stat::number_of_executed_units:").or_else(|| last("#"));
    Found {
        target,
        executions: ran.unwrap_or(0),
        inputs: last(" corp: ").unwrap_or(0),
        coverage: last(" cov: ").unwrap_or(0),
        broken: false,
    }
}

/// What broke the promise, and how to see it again.
fn tell(target: &Target, told: &str) {
    let lines: Vec<_> = told.lines().collect();
    let panic = lines.iter().position(|line| line.contains("panicked at"));
    let said = match panic {
        Some(at) => &lines[at..lines.len().min(at + 8)],
        None => &lines[lines.len().saturating_sub(20)..],
    };
    eprintln!("{} broke its promise:\n{}", target.name, said.join("\n"));
    let input = lines
        .iter()
        .rev()
        .find_map(|line| line.split_once("Test unit written to "));
    if let Some((_, input)) = input {
        eprintln!(
            "to see it again: cargo run -p unanimity-fuzz -- {} --input {}",
            target.name,
            input.trim()
        );
    }
}
