//! A run: rounds until the time is up or a promise was broken, and what to say of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::task::JoinSet;

use crate::{
    arguments::Arguments,
    check::{Evidence, Violation},
    fault::{Kind, failpoint},
    figures::Figures,
    round, settle,
    system::System,
    tables::Tables,
    traffic::Traffic,
    trial::Trial,
    watch,
};

/// Files of rounds that are kept while the run goes on.
const ROUNDS_KEPT: u64 = 2;

/// Wrong use.
const USAGE: u8 = 2;

/// Runs, and says what came of it.
pub(crate) async fn run(arguments: &Arguments) -> ExitCode {
    if arguments.kinds().contains(&Kind::Failpoint) && !failpoint::are_built_in() {
        eprintln!(
            "error: this program was built without failpoints; use `cargo xtask chaos`, build it with `--features failpoints`, \
             or leave failpoint out of --faults"
        );
        return USAGE.into();
    }
    tokio::select! {
        ended = whole(arguments) => match ended {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("the harness failed: {error:#}");
                ExitCode::FAILURE
            }
        },
        _ = tokio::signal::ctrl_c() => {
            eprintln!("interrupted: everything that was started ends now");
            ExitCode::FAILURE
        }
    }
}

/// True where it is green.
async fn whole(arguments: &Arguments) -> Result<bool> {
    let directory = std::env::temp_dir().join(format!("unanimity-chaos-{}", std::process::id()));
    fs::create_dir(&directory).with_context(|| format!("{}", directory.display()))?;
    eprintln!("files are in {}", directory.display());
    let trial = Arc::new(Trial::new(System::start(&directory, arguments.seed).await?));
    let traffic = Arc::new(Traffic::new(Arc::clone(&trial), arguments.seed));
    let mut tasks = traffic.start(arguments.clients)?;
    tasks.spawn(watch::watch(Arc::clone(&trial), arguments.seed));
    let (rounds, violations, time) = rounds(&trial, &traffic, arguments, &mut tasks).await?;
    tasks.shutdown().await;
    let figures = figures(&trial, arguments, rounds, time, violations.len()).await?;
    let faintly = faint(arguments, &figures);
    match arguments.json {
        true => println!("{}", serde_json::to_string(&figures)?),
        false => figures.print(),
    }
    for reason in &faintly {
        eprintln!("not green: {reason}");
    }
    let green = violations.is_empty() && faintly.is_empty();
    if green {
        fs::remove_dir_all(&directory)?;
    } else {
        eprintln!("everything is kept in {}", directory.display());
    }
    Ok(green)
}

/// Runs rounds. Gives how many, what was broken, and how long it took.
async fn rounds(
    trial: &Arc<Trial>,
    traffic: &Traffic,
    arguments: &Arguments,
    tasks: &mut JoinSet<()>,
) -> Result<(u64, Vec<Violation>, Duration)> {
    let begin = Instant::now();
    let limit = Duration::from_secs_f64(arguments.minutes * 60.0);
    let mut rounds = 0;
    loop {
        let number = arguments.first_round + rounds;
        trial.history.write_to(&file(trial, number))?;
        let violations = round::run(trial, traffic, arguments, number).await?;
        trial.history.flush();
        rounds += 1;
        report(trial, number, begin);
        if let Some(ended) = tasks.try_join_next() {
            ended.context("a client, or who watches the processes, failed")?;
        }
        if !violations.is_empty() {
            blame(trial, arguments, number, &violations).await?;
            return Ok((rounds, violations, begin.elapsed()));
        }
        if let Some(old) = number.checked_sub(ROUNDS_KEPT) {
            // Where it isn't there, there is nothing to remove.
            let _ = fs::remove_file(file(trial, old));
        }
        let last = arguments.rounds.is_some_and(|most| rounds >= most);
        if last || begin.elapsed() >= limit {
            return Ok((rounds, violations, begin.elapsed()));
        }
    }
}

fn file(trial: &Trial, round: u64) -> PathBuf {
    let directory: &Path = &trial.system.directory;
    directory.join(format!("history-{round}.jsonl"))
}

fn report(trial: &Trial, round: u64, begin: Instant) {
    let kills: u64 = trial.done.lock().kills.values().sum();
    let requests = trial.history.requests();
    let seconds = begin.elapsed().as_secs();
    eprintln!("round {round}: {requests} requests, {kills} kills, {seconds} s so far");
}

/// Says what was broken, keeps the evidence, and tells how to see it again.
async fn blame(
    trial: &Trial,
    arguments: &Arguments,
    round: u64,
    violations: &[Violation],
) -> Result<()> {
    const SHOWN: usize = 20;
    for violation in violations.iter().take(SHOWN) {
        eprintln!("VIOLATION: {violation}");
    }
    if let Some(more) = violations.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        eprintln!("… and {more} more");
    }
    let tables = Tables::read(&trial.system.banks).await?;
    for (bank, ledger) in trial.system.banks.iter().zip(&tables.ledgers) {
        let lines: Vec<_> = ledger.iter().map(|entry| format!("{entry:?}")).collect();
        let path = trial
            .system
            .directory
            .join(format!("{}-ledger.txt", bank.name));
        fs::write(path, lines.join("\n"))?;
    }
    eprintln!("to follow the same plan again: {}", arguments.again(round));
    Ok(())
}

async fn figures(
    trial: &Trial,
    arguments: &Arguments,
    rounds: u64,
    time: Duration,
    violations: usize,
) -> Result<Figures> {
    let tables = Tables::read(&trial.system.banks).await?;
    let shown = settle::shown(trial, &trial.system.inspector()?).await?;
    let history = trial.history.view();
    let by_hand = trial.done.lock().by_hand.clone();
    let banks = &trial.system.banks;
    let evidence = Evidence::new(banks, &tables, &history, &by_hand, &shown);
    let figures = Figures::of(trial, &evidence);
    if rounds == 0 {
        bail!("no round was run");
    }
    Ok(Figures {
        seed: arguments.seed,
        rounds,
        minutes: time.as_secs_f64() / 60.0,
        violations: violations as u64,
        ..figures
    })
}

/// Why a run without a violation proves too little.
fn faint(arguments: &Arguments, figures: &Figures) -> Vec<String> {
    let mut reasons = Vec::new();
    let scheduled = arguments.scheduled(figures.rounds);
    for kind in scheduled {
        let landed = figures.faults.get(&kind.name());
        if landed.is_none_or(|landed| landed.installed == 0) {
            reasons.push(format!("no fault of the kind {} landed", kind.name()));
        }
    }
    if figures.kills > 0 && figures.in_flight_at_kill.median == 0 {
        reasons.push("nothing was in flight when processes were killed".into());
    }
    let committed = figures.outcomes.get("committed").copied().unwrap_or(0);
    if committed == 0 {
        reasons.push("nothing was committed".into());
    }
    reasons
}
