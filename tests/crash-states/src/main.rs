//! Every legal state of the log's files after a crash, reopened.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use unanimity_crash_states::campaign::{Campaign, SYNC_FAILS, WRITE_FAILS};
use unanimity_crash_states::figures::Figures;
use unanimity_crash_states::image::Thoroughness;
use unanimity_crash_states::recording::{Recorder, Recording};
use unanimity_crash_states::reopen::Reopener;
use unanimity_crash_states::search::{Outcomes, Search};
use unanimity_crash_states::violation::read_events;
use unanimity_crash_states::{damage, driver, script};

const DAMAGE: &str = "damage";

/// Records what real runs of the write-ahead log ask of the file system, and opens every state in which a crash may leave its files.
///
/// Each such state must open, with all that was acknowledged by then, and of a batch that was being appended all or nothing. Then small logs are
/// damaged in every byte, which the log must notice. Exits with 0 if all promises were kept, 1 if one was broken, 2 for wrong usage.
#[derive(Debug, Parser)]
#[command(
    name = "unanimity-crash-states",
    args_conflicts_with_subcommands = true
)]
struct Arguments {
    /// Only this run; may be given more than once
    #[arg(long = "run", value_name = "NAME", value_parser = run_names())]
    runs: Vec<String>,
    /// Random states at a moment that has more states than --exhaustive
    #[arg(long, value_name = "COUNT", default_value_t = 60)]
    random: usize,
    /// Up to how many states of a moment all are opened
    #[arg(long, value_name = "COUNT", default_value_t = 2048)]
    exhaustive: usize,
    /// Recoveries after a power loss to look into, and as many after a kill
    #[arg(long, value_name = "COUNT", default_value_t = 250)]
    recoveries: usize,
    /// Print the figures as one line of JSON
    #[arg(long)]
    json: bool,
    /// Where to keep states that broke a promise
    #[arg(long, value_name = "DIRECTORY", default_value_os_t = std::env::temp_dir().join("unanimity-crash-states"))]
    keep: PathBuf,
    /// Go through a kept recording again
    #[arg(long, value_name = "FILE", requires = "point", conflicts_with = "runs")]
    replay: Option<PathBuf>,
    /// With --replay: after which event the crash comes
    #[arg(long, value_name = "NUMBER", requires = "replay")]
    point: Option<usize>,
    /// With --replay: only the state with this fingerprint
    #[arg(long, value_name = "HEXADECIMAL", requires = "replay", value_parser = fingerprint)]
    state: Option<u64>,
    #[command(subcommand)]
    drive: Option<Drive>,
}

#[derive(Debug, Subcommand)]
enum Drive {
    /// Be the process that is recorded
    #[command(hide = true)]
    Drive {
        #[arg(long)]
        script: Option<String>,
        #[arg(long, default_value_t = 0)]
        recover: usize,
        root: PathBuf,
    },
}

fn run_names() -> clap::builder::PossibleValuesParser {
    let scripts = script::all().into_iter().map(|script| script.name);
    scripts
        .chain([SYNC_FAILS, WRITE_FAILS, DAMAGE])
        .collect::<Vec<_>>()
        .into()
}

fn fingerprint(text: &str) -> Result<u64, std::num::ParseIntError> {
    u64::from_str_radix(text, 16)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match carry_out(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether all promises were kept.
fn carry_out(arguments: &Arguments) -> Result<bool> {
    if let Some(Drive::Drive {
        script,
        recover,
        root,
    }) = &arguments.drive
    {
        return drive(script.as_deref(), *recover, root).map(|()| true);
    }
    // Memory is as good as a disk here: what is durable is up to the model.
    let memory = Path::new("/dev/shm");
    let scratch = match tempfile::tempdir_in(memory) {
        Ok(scratch) => scratch,
        Err(_) => tempfile::tempdir()?,
    };
    match (&arguments.replay, arguments.point) {
        (Some(recording), Some(point)) => replay(arguments, recording, point, scratch.path()),
        _ => search(arguments, scratch.path()),
    }
}

fn drive(script: Option<&str>, recover: usize, root: &Path) -> Result<()> {
    let log = |case: usize| root.join(case.to_string()).join("log");
    if let Some(name) = script {
        let script = script::named(name).with_context(|| format!("there is no run {name}"))?;
        return driver::drive(0, &log(0), &script.steps, 0);
    }
    for case in 0..recover {
        driver::drive(case, &log(case), &script::recovery(), 1000)?;
    }
    Ok(())
}

fn search(arguments: &Arguments, scratch: &Path) -> Result<bool> {
    let started = Instant::now();
    let program = std::env::current_exe()?;
    let campaign = Campaign {
        recorder: Recorder {
            program: &program,
            scratch,
        },
        thoroughness: thoroughness(arguments),
        recoveries: arguments.recoveries,
    };
    let wanted =
        |name: &str| arguments.runs.is_empty() || arguments.runs.iter().any(|run| run == name);
    let results = campaign.run(&wanted)?;
    for violation in &results.violations {
        eprintln!("{}", violation.keep(&arguments.keep)?);
    }
    let mut figures = results.figures;
    if wanted(DAMAGE) {
        let (damaged, broken) = damage::run(&scratch.join("damaged"))?;
        for broken in broken {
            eprintln!(
                "BROKEN: {broken}\n  again cargo run --release -p unanimity-crash-states -- --run {DAMAGE}"
            );
        }
        figures += &damaged;
    }
    figures.seconds = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    print(&figures, arguments.json)?;
    Ok(figures.violations == 0)
}

fn thoroughness(arguments: &Arguments) -> Thoroughness {
    Thoroughness {
        exhaustive: arguments.exhaustive,
        random: arguments.random,
    }
}

/// Goes through one moment of a kept recording, and tells whether it is sound now.
fn replay(arguments: &Arguments, path: &Path, point: usize, scratch: &Path) -> Result<bool> {
    let mut events = read_events(path)?;
    if point >= events.len() {
        let last = events.len().saturating_sub(1);
        bail!(
            "--point {point}: the last event of {} is {last}; give one up to that",
            path.display()
        );
    }
    events.truncate(point + 1);
    let recording = Recording {
        name: path.display().to_string(),
        events,
        from: point,
    };
    let search = Search {
        outcomes: &Outcomes::default(),
        reopener: &Reopener::new(scratch.join("log")),
        thoroughness: thoroughness(arguments),
        only: arguments.state,
    };
    let findings = search.through(&recording)?;
    match findings.violation {
        None => {
            eprintln!("{} states, all sound", findings.figures.crash_states);
            Ok(true)
        }
        Some(violation) => {
            eprintln!("{}", violation.keep(&arguments.keep)?);
            Ok(false)
        }
    }
}

fn print(figures: &Figures, json: bool) -> Result<()> {
    let value = serde_json::to_value(figures)?;
    if json {
        println!("{value}");
        return Ok(());
    }
    for (name, number) in value.as_object().into_iter().flatten() {
        println!("{:>12}  {}", number.to_string(), name.replace('_', " "));
    }
    Ok(())
}
