//! Many lives, on several threads.

use std::{
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{figures::Figures, invariants::Violation, life::Life, plan::Workload};

/// After so many failing seeds the rest is not lived.
const ENOUGH: usize = 5;
/// Between two reports of progress.
const PROGRESS: Duration = Duration::from_secs(5);

/// What came of all of them.
pub(crate) struct Outcome {
    pub(crate) figures: Figures,
    pub(crate) broken: Vec<(Life, Violation)>,
    pub(crate) seconds: f64,
}

/// Lives all seeds, and tells how it goes on standard error where `loud`.
pub(crate) fn run(seeds: Range<u64>, workload: Workload, jobs: usize, loud: bool) -> Outcome {
    let began = Instant::now();
    let (next, enough) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let sum = Mutex::new((Figures::default(), Vec::new(), Instant::now()));
    let work = || {
        while !enough.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let life = Life::new(seed, workload);
            let lived = life.live(false);
            let mut sum = sum.lock().expect("no life panics outside of its own guard");
            let (figures, broken, told) = &mut *sum;
            figures.add(&lived.figures);
            if let Some(violation) = lived.violation {
                broken.push((life, violation));
                enough.store(broken.len() >= ENOUGH, Ordering::Relaxed);
            }
            if loud && told.elapsed() >= PROGRESS {
                *told = Instant::now();
                let hours = figures.lived_ms / 3_600_000;
                eprintln!(
                    "{} seeds, {hours} simulated hours, {} broken",
                    figures.lives,
                    broken.len()
                );
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    let (figures, mut broken, _) = sum.into_inner().expect("as above");
    broken.sort_by_key(|(life, _)| life.seed);
    Outcome {
        figures,
        broken,
        seconds: began.elapsed().as_secs_f64(),
    }
}
