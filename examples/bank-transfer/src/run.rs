//! One run: banks, processes, transfers, kills, and a look at what is left.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::{select, time::interval, try_join};

use crate::{
    Arguments,
    bank::{self, Bank},
    chaos::{self, Chaos},
    processes::System,
    report::{BankReport, Findings, Report},
    traffic::Traffic,
    transfers::{Clients, Plan},
};

/// Makes the transfers, with all files in `directory`.
pub(crate) async fn run(arguments: &Arguments, directory: &Path) -> Result<Report> {
    let banks = open_banks(arguments, directory).await?;
    let before = totals(&banks).await?;
    let clients = usize::from(arguments.clients);
    let mut system = System::start(directory, &banks, clients).await?;

    let plan = Plan {
        seed: arguments.seed.unwrap_or_else(rand::random),
        banks: banks.iter().map(|bank| bank.name.clone()).collect(),
        accounts: arguments.accounts,
    };
    eprintln!("seed {}, files in {}", plan.seed, directory.display());
    let traffic = Arc::new(Traffic::new());
    let chaos = Chaos {
        targets: arguments.kills.clone(),
        seed: plan.seed,
        traffic: Arc::clone(&traffic),
        transfers: arguments.transfers,
    };
    let work = Clients::new(system.address(), plan, Arc::clone(&traffic))?.run(clients);
    let started = Instant::now();
    let timed_work = async {
        work.await?;
        Ok(started.elapsed())
    };
    let (elapsed, kills) = select! {
        done = async { try_join!(timed_work, chaos.run(&mut system, &banks)) } => done?,
        never = show_progress(&traffic, arguments.transfers) => never,
    };

    let in_doubt = chaos::settle(&system, &banks).await?;
    system.stop().await?;
    Ok(Report::new(Findings {
        orphan_entries: orphan_entries(&banks).await?,
        banks: bank_reports(&banks, &before, &totals(&banks).await?),
        tally: traffic.tally(),
        kills,
        in_doubt,
        elapsed,
    }))
}

/// The banks that were named, or else two new ones, with new accounts.
async fn open_banks(arguments: &Arguments, directory: &Path) -> Result<Vec<Bank>> {
    let urls = match arguments.banks.is_empty() {
        true => ["bank1", "bank2"]
            .map(|name| {
                format!(
                    "sqlite:{}",
                    directory.join(name).with_extension("db").display()
                )
            })
            .to_vec(),
        false => arguments.banks.clone(),
    };
    ensure!(
        urls.len() > 1 || arguments.accounts > 1,
        "a single bank needs two accounts"
    );
    let mut banks = Vec::new();
    for (number, url) in urls.iter().enumerate() {
        ensure!(
            !urls[..number].contains(url),
            "two banks have the same URL, and so the same accounts"
        );
        let bank = Bank::open(format!("bank{}", number + 1), url.clone()).await?;
        bank.create(arguments.accounts).await?;
        banks.push(bank);
    }
    Ok(banks)
}

async fn totals(banks: &[Bank]) -> Result<Vec<i64>> {
    let mut totals = Vec::new();
    for bank in banks {
        totals.push(bank.total().await?);
    }
    Ok(totals)
}

async fn orphan_entries(banks: &[Bank]) -> Result<usize> {
    let mut entries = Vec::new();
    for bank in banks {
        entries.extend(bank.entries().await?);
    }
    Ok(bank::orphans(entries))
}

fn bank_reports(banks: &[Bank], before: &[i64], after: &[i64]) -> Vec<BankReport> {
    let totals = before.iter().zip(after);
    let reports = banks.iter().zip(totals);
    reports
        .map(|(bank, (before, after))| BankReport {
            name: bank.name.clone(),
            url: bank.url(),
            total_before: *before,
            total_after: *after,
        })
        .collect()
}

/// Shows how far the clients are, for ever. Only a terminal gets to see it.
async fn show_progress<T>(traffic: &Traffic, transfers: u64) -> T {
    const TEMPLATE: &str = "{bar:40} {pos}/{len} transfers, {per_sec}, {msg}";
    let style =
        ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(transfers).with_style(style);
    let mut ticks = interval(Duration::from_millis(100));
    loop {
        ticks.tick().await;
        let tally = traffic.tally();
        bar.set_position(tally.ended());
        bar.set_message(format!(
            "{} committed, {} aborted",
            tally.committed,
            tally.aborted()
        ));
    }
}
