//! The whole search: record the runs, with faults too, go through them, and through the recoveries from what they leave.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use crate::event::Event;
use crate::figures::Figures;
use crate::image::{Random, Thoroughness};
use crate::promise::Promise;
use crate::recording::{Fault, Recorder, Recording};
use crate::recovery::{Crash, join};
use crate::reopen::{Files, Reopener};
use crate::script;
use crate::search::{Findings, Outcomes, Search};
use crate::violation::Violation;

/// The names of the runs with faults.
pub const SYNC_FAILS: &str = "sync-fails";
/// As above.
pub const WRITE_FAILS: &str = "write-fails";

/// What fails in them.
const FAULTS: [(&str, &str); 3] = [
    (SYNC_FAILS, "fsync"),
    (SYNC_FAILS, "fdatasync"),
    (WRITE_FAILS, "pwrite64"),
];

/// The scripts that are run with faults.
const FAULTY: [&str; 2] = ["trim", "resize"];

/// How many recoveries one strace sees.
const RECOVERIES_AT_ONCE: usize = 25;

/// What to do, and how thoroughly.
#[derive(Debug)]
pub struct Campaign<'a> {
    /// What to record with.
    pub recorder: Recorder<'a>,
    /// How many states to open at each moment.
    pub thoroughness: Thoroughness,
    /// How many recoveries to record, of each kind.
    pub recoveries: usize,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Results {
    /// The counts.
    pub figures: Figures,
    /// The broken promises.
    pub violations: Vec<Violation>,
    /// States for recovery to start from.
    losses: Vec<(String, Vec<(Files, Promise)>)>,
}

/// What to do with one job; it adds to the results.
type Work<'a, J> = dyn Fn(&J, &Search<'_>, &Mutex<Results>) -> Result<()> + Sync + 'a;

/// A run to record.
#[derive(Clone, Copy, Debug)]
struct Run {
    script: &'static str,
    fault: Option<Fault>,
}

impl Campaign<'_> {
    /// Does all of it, for the runs that are `wanted`, and tells its progress.
    ///
    /// # Errors
    /// Where something can't be run, as opposed to: breaks a promise.
    pub fn run(&self, wanted: &dyn Fn(&str) -> bool) -> Result<Results> {
        let outcomes = Outcomes::default();
        let (recordings, mut results) = self.runs(wanted, &outcomes)?;
        tell("runs", &results.figures, &outcomes);
        let crashes = self.crashes(&recordings, std::mem::take(&mut results.losses));
        let recovered = self.recoveries(crashes, &outcomes)?;
        results.figures += &recovered.figures;
        results.figures.recovery_states = recovered.figures.crash_states;
        results.violations.extend(recovered.violations);
        tell("with recoveries", &results.figures, &outcomes);
        results.figures.distinct_states = outcomes.count() as u64;
        Ok(results)
    }

    fn runs(
        &self,
        wanted: &dyn Fn(&str) -> bool,
        outcomes: &Outcomes,
    ) -> Result<(Vec<Recording>, Results)> {
        let runs = self.list(wanted)?;
        let recordings = Mutex::new(Vec::new());
        let results = self.in_parallel(&runs, outcomes, &|run, search, results| {
            let Some(recording) = self.recorder.script(run.script, run.fault)? else {
                return Ok(());
            };
            let mut findings = search.through(&recording)?;
            findings.figures.runs = 1;
            let losses = std::mem::take(&mut findings.candidates).choose(self.recoveries);
            let mut results = lock(results);
            results.losses.push((recording.name.clone(), losses));
            results.take(findings);
            lock(&recordings).push(recording);
            Ok(())
        })?;
        let recordings = recordings.into_inner();
        Ok((recordings.unwrap_or_else(PoisonError::into_inner), results))
    }

    /// The runs: each script; some with each of its syncs failing, and each of its writes.
    fn list(&self, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Run>> {
        let scripts = script::all().into_iter().map(|script| script.name);
        let mut runs: Vec<_> = scripts
            .filter(|name| wanted(name))
            .map(|script| Run {
                script,
                fault: None,
            })
            .collect();
        for (name, call) in FAULTS {
            for script in FAULTY.iter().filter(|_| wanted(name)) {
                let most = self.most(script, call)?;
                runs.extend((1..=most).map(|number| Run {
                    script,
                    fault: Some(Fault { call, number }),
                }));
            }
        }
        Ok(runs)
    }

    /// How many syncs or writes a script makes, of which at most as many are this call.
    fn most(&self, script: &str, call: &str) -> Result<usize> {
        let recording = self.recorder.script(script, None)?;
        let events = recording.map_or(Vec::new(), |recording| recording.events);
        let is_write = call.contains("write");
        let counted = events.iter().filter(|event| match event {
            Event::SyncFile { .. } | Event::SyncDirectory(_) | Event::SyncParent(_) => !is_write,
            Event::Write { .. } => is_write,
            _ => false,
        });
        Ok(counted.count())
    }

    /// Power losses and kills, as many of each as were asked for, taken evenly from all recordings.
    fn crashes(
        &self,
        recordings: &[Recording],
        losses: Vec<(String, Vec<(Files, Promise)>)>,
    ) -> Vec<Crash> {
        let losses = losses.into_iter().flat_map(|(name, losses)| {
            let name = std::rc::Rc::new(name);
            losses
                .into_iter()
                .map(move |(files, promise)| Crash::power_loss(&name, files, promise))
        });
        let kills = recordings.iter().flat_map(Crash::kills);
        let mut crashes = some(losses.collect(), self.recoveries);
        crashes.extend(some(kills.collect(), self.recoveries));
        crashes
    }

    fn recoveries(&self, crashes: Vec<Crash>, outcomes: &Outcomes) -> Result<Results> {
        let chunks: Vec<_> = crashes.chunks(RECOVERIES_AT_ONCE).collect();
        self.in_parallel(&chunks, outcomes, &|chunk, search, results| {
            let seen = self
                .recorder
                .recoveries(chunk.iter().map(|crash| &crash.files))?;
            for recording in &join(chunk.to_vec(), seen) {
                let mut findings = search.through(recording)?;
                findings.figures.recoveries = 1;
                lock(results).take(findings);
            }
            Ok(())
        })
    }

    /// Works through the jobs on all processors. The first error ends it.
    fn in_parallel<J: Sync>(
        &self,
        jobs: &[J],
        outcomes: &Outcomes,
        work: &Work<'_, J>,
    ) -> Result<Results> {
        let results = Mutex::new(Results::default());
        let next = Mutex::new(jobs.iter());
        let one = |directory: &Path| -> Result<()> {
            let reopener = Reopener::new(directory.join("log"));
            let search = Search {
                outcomes,
                reopener: &reopener,
                thoroughness: self.thoroughness,
                only: None,
            };
            loop {
                let Some(job) = lock(&next).next() else {
                    return Ok(());
                };
                work(job, &search, &results)?;
            }
        };
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let worked: Vec<Result<()>> = std::thread::scope(|scope| {
            let spawn =
                |_| scope.spawn(|| one(tempfile::tempdir_in(self.recorder.scratch)?.path()));
            let threads: Vec<_> = (0..workers).map(spawn).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined
                .map(|joined| joined.unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked"))))
                .collect()
        });
        worked.into_iter().collect::<Result<()>>()?;
        Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Results {
    fn take(&mut self, findings: Findings) {
        self.figures += &findings.figures;
        self.figures.violations += u64::from(findings.violation.is_some());
        self.violations.extend(findings.violation);
    }
}

fn tell(what: &str, figures: &Figures, outcomes: &Outcomes) {
    eprintln!(
        "{what}: {} + {} recordings, {} moments, {} states, {} of them different",
        figures.runs,
        figures.recoveries,
        figures.crash_points,
        figures.crash_states,
        outcomes.count()
    );
}

/// So many of these, chosen at random but the same in every run.
fn some<T>(mut all: Vec<T>, count: usize) -> Vec<T> {
    let mut random = Random(all.len() as u64);
    while all.len() > count {
        all.swap_remove(random.below(all.len()));
    }
    all
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
