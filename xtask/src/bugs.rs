//! Seeded bugs: a harness that catches nothing proves nothing, so each of these mistakes is compiled in by itself and must be caught.
//!
//! Caught means: the harness named in the table passed on the code as it is, failed on the code with the bug, and named the promise that
//! this bug breaks. A build that fails, a harness that crashes or runs out of time, or one that fails for another reason, has caught nothing.

mod harness;
mod table;
mod trial;

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::harness::record;

use self::{
    table::{BUGS, Bug},
    trial::{Trial, Verdict},
};

/// What to try.
#[derive(Default, clap::Args)]
pub(crate) struct Arguments {
    /// Try this bug alone; may be given again.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Say which bugs there are, and what catches them; try none.
    #[arg(long)]
    list: bool,
    /// Print the figures as one line of JSON.
    #[arg(long)]
    json: bool,
    /// Add the figures to those in docs/proof.
    #[arg(long)]
    record: bool,
}

/// Compiles in one bug after the other, and runs what must catch it.
///
/// # Errors
/// Where a harness fails on the code as it is, or a bug escapes.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let bugs = chosen(&arguments.only)?;
    if arguments.list {
        bugs.iter().for_each(|bug| println!("{}", bug.described()));
        return Ok(());
    }
    let started = Instant::now();
    pass_without(&bugs)?;
    let mut tried = Vec::new();
    for (index, bug) in bugs.iter().enumerate() {
        eprint!("[{}/{}] {} … ", index + 1, bugs.len(), bug.name);
        let trial = trial::with(bug)?;
        eprintln!("{}", trial.told(bug));
        tried.push((*bug, trial));
    }
    let figures = figures(&tried, started.elapsed().as_secs_f64());
    if arguments.json {
        println!("{figures}");
    } else {
        tried
            .iter()
            .for_each(|(bug, trial)| println!("{:26} {}", bug.name, trial.told(bug)));
    }
    if arguments.record {
        record("bugs", &figures)?;
    }
    judge(&tried)
}

fn chosen(only: &[String]) -> Result<Vec<&'static Bug>> {
    if let Some(name) = only
        .iter()
        .find(|name| BUGS.iter().all(|b| b.name != **name))
    {
        bail!("--only {name}: there is no such bug; cargo xtask bugs --list names them all");
    }
    let wanted = |bug: &&Bug| only.is_empty() || only.iter().any(|name| name == bug.name);
    Ok(BUGS.iter().filter(wanted).collect())
}

/// Every harness, once, on the code as it is: one that fails anyway catches nothing.
fn pass_without(bugs: &[&Bug]) -> Result<()> {
    let mut harnesses = Vec::new();
    for bug in bugs {
        if !harnesses.contains(&bug.harness) {
            harnesses.push(bug.harness);
        }
    }
    for harness in harnesses {
        let patterns: Vec<_> = bugs
            .iter()
            .filter(|bug| bug.harness == harness)
            .map(|bug| bug.shows)
            .collect();
        eprint!("without a bug: {} … ", harness.label());
        let trial = trial::without(harness, &patterns)?;
        eprintln!(
            "passed; build {:.1} s, run {:.1} s",
            trial.build_seconds, trial.run_seconds
        );
    }
    Ok(())
}

fn figures(tried: &[(&Bug, Trial)], seconds: f64) -> Value {
    let caught = tried.iter().filter(|(_, trial)| trial.is_caught()).count();
    let sum = |part: fn(&Trial) -> f64| tenths(tried.iter().map(|(_, trial)| part(trial)).sum());
    let mut caught_by: BTreeMap<&str, BTreeMap<String, f64>> = BTreeMap::new();
    for (bug, trial) in tried.iter().filter(|(_, trial)| trial.is_caught()) {
        let figure = format!("{}_seconds", bug.name.replace('-', "_"));
        let by_name = caught_by.entry(bug.harness.name()).or_default();
        by_name.insert(figure, tenths(trial.run_seconds));
    }
    json!({
        "bugs": tried.len(),
        "caught": caught,
        "violations": tried.len() - caught,
        "build_seconds": sum(|trial| trial.build_seconds),
        "run_seconds": sum(|trial| trial.run_seconds),
        "seconds": tenths(seconds),
        "caught_by": caught_by,
    })
}

fn tenths(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

fn judge(tried: &[(&Bug, Trial)]) -> Result<()> {
    let escaped: Vec<_> = tried
        .iter()
        .filter(|(_, trial)| !trial.is_caught())
        .collect();
    for (bug, trial) in &escaped {
        if let Verdict::Escaped(why) = &trial.verdict {
            eprintln!(
                "\n{}: {}\n  {why}\n  its output: {}\n  once more: cargo xtask bugs --only {}",
                bug.name,
                bug.mistake,
                trial.log.display(),
                bug.name
            );
        }
    }
    if !escaped.is_empty() {
        bail!("{} of {} seeded bugs escaped", escaped.len(), tried.len());
    }
    Ok(())
}
