//! What the program says: progress and findings on standard error, figures on standard output.

use std::{process::ExitCode, thread, time::Instant};

use crate::{
    arguments::Arguments,
    campaign, coverage,
    figures::Figures,
    invariants::Violation,
    life::Life,
    plan::{Act, Workload},
    shrink::shrink,
};

/// Lines of a trace that are printed of a seed that failed among many.
const LINES: usize = 120;

/// Many lives.
pub(crate) fn many(arguments: &Arguments) -> ExitCode {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let jobs = arguments.jobs.map_or(cores, usize::from);
    let outcome = campaign::run(arguments.seeds.clone(), arguments.workload, jobs, true);
    for (life, violation) in &outcome.broken {
        tell_failure(life, violation, arguments.whole);
    }
    let missing = if outcome.broken.is_empty() {
        coverage::missing(&outcome.figures, arguments.workload)
    } else {
        Vec::new()
    };
    for what in &missing {
        eprintln!("never came up: {what}");
    }
    tell(
        arguments,
        &outcome.figures,
        outcome.broken.len(),
        outcome.seconds,
    );
    exit(outcome.broken.is_empty() && missing.is_empty())
}

/// One life, or a part of it.
pub(crate) fn single(arguments: &Arguments, life: &Life) -> ExitCode {
    let began = Instant::now();
    if arguments.trace {
        tell_plan(life);
    }
    let lived = life.live(arguments.trace);
    for line in &lived.trace.lines {
        eprintln!("{line}");
    }
    if let Some(Violation { invariant, problem }) = &lived.violation {
        eprintln!("\n{invariant} is broken: {problem}");
    }
    let mut figures = Figures::default();
    figures.add(&lived.figures);
    eprintln!(
        "log {:016x}, trace {:016x}",
        lived.figures.log_hash,
        lived.trace.hash()
    );
    let violations = usize::from(lived.violation.is_some());
    tell(
        arguments,
        &figures,
        violations,
        began.elapsed().as_secs_f64(),
    );
    exit(lived.violation.is_none())
}

fn exit(kept: bool) -> ExitCode {
    if kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn tell_plan(life: &Life) {
    let plan = life.plan();
    eprintln!("{:?}", plan.shape);
    for entry in &plan.entries {
        let act = match &entry.act {
            Act::Ask(request) => format!("{request:?}"),
            Act::Fault(fault) => format!("{fault:?}"),
        };
        eprintln!("{:>4} at {:>6}: {act}", entry.number, entry.at);
    }
}

fn tell_failure(life: &Life, violation: &Violation, whole: bool) {
    let Violation { invariant, problem } = violation;
    eprintln!("\nseed {}: {invariant} is broken: {problem}", life.seed);
    eprintln!("    {}", command(life));
    if whole {
        return;
    }
    let small = shrink(life, invariant);
    let lived = small.live(true);
    let skipped = lived.trace.lines.len().saturating_sub(LINES);
    if skipped > 0 {
        eprintln!("… {skipped} lines before these");
    }
    for line in &lived.trace.lines[skipped..] {
        eprintln!("{line}");
    }
    if let Some(Violation { invariant, problem }) = &lived.violation {
        eprintln!("{invariant} is broken: {problem}");
    }
    eprintln!("the least that shows it again:\n    {}", command(&small));
}

/// Shows the life again.
fn command(life: &Life) -> String {
    let mut text = format!("cargo xtask sim --seeds {}..{}", life.seed, life.seed + 1);
    if life.workload != Workload::Mixed {
        text += &format!(
            " --workload {}",
            format!("{:?}", life.workload).to_lowercase()
        );
    }
    if let Some(only) = &life.only {
        let numbers: Vec<String> = only.iter().map(usize::to_string).collect();
        text += &format!(" --only {}", numbers.join(","));
    }
    text + " --trace"
}

fn tell(arguments: &Arguments, figures: &Figures, violations: usize, seconds: f64) {
    let all = figures.to_json(violations, seconds);
    if arguments.json {
        println!("{all}");
        return;
    }
    let Some(all) = all.as_object() else { return };
    for (name, value) in all {
        match value.as_object() {
            None => println!("{name:<36} {value}"),
            Some(group) => {
                println!("{name}");
                for (name, value) in group {
                    println!("    {name:<32} {value}");
                }
            }
        }
    }
}
