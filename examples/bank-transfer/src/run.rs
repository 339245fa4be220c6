//! One run: banks, processes, transfers, kills, and a look at what is left.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use example_harness::{
    chaos::{self, Chaos},
    processes::{ProcessId, System},
    progress,
    traffic::Traffic,
};
use tokio::{select, try_join};

use crate::{
    Arguments,
    bank::{self, Bank},
    plugs,
    report::{BankReport, Findings, Report},
    tally::Tally,
    transfers::{Clients, Plan},
};

/// A kill may come so far into a transfer.
const MOMENT: Duration = Duration::from_millis(2);

/// Makes the transfers, with all files in `directory`.
pub(crate) async fn run(arguments: &Arguments, directory: &Path) -> Result<Report> {
    let banks = open_banks(arguments, directory).await?;
    let before = totals(&banks).await?;
    let clients = usize::from(arguments.clients);
    let mut system = System::start(directory).await?;
    let agents = start_agents(&mut system, &banks, clients).await?;

    let plan = Plan {
        seed: arguments.seed.unwrap_or_else(rand::random),
        banks: banks.iter().map(|bank| bank.name.clone()).collect(),
        accounts: arguments.accounts,
    };
    eprintln!("seed {}, files in {}", plan.seed, directory.display());
    let traffic = Arc::new(Traffic::default());
    let chaos = Chaos {
        victims: plugs::victims(&arguments.kills, &agents),
        seed: plan.seed,
        traffic: &traffic,
        work: arguments.transfers,
        moment: MOMENT,
    };
    let log_id = system.log_id().to_owned();
    let in_doubt = async || plugs::in_doubt(&log_id, &banks).await;
    let work = Clients::new(system.address(), plan, Arc::clone(&traffic))?.run(clients);
    let started = Instant::now();
    let timed_work = async {
        work.await?;
        Ok(started.elapsed())
    };
    let (elapsed, kills) = select! {
        done = async { try_join!(timed_work, chaos.run(&mut system, &in_doubt)) } => done?,
        never = progress::show(&traffic, arguments.transfers, "transfers", standing) => never,
    };

    let in_doubt = chaos::settle(&in_doubt).await?;
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

/// One agent for each bank.
async fn start_agents(
    system: &mut System,
    banks: &[Bank],
    clients: usize,
) -> Result<Vec<ProcessId>> {
    // Each client has one branch open at a time, and the agent looks around on connections of its own.
    let connections = u32::try_from(clients)?.saturating_add(4);
    let mut agents = Vec::new();
    for bank in banks {
        let configuration = bank.agent_configuration(system.address(), connections);
        agents.push(system.add_configured(&bank.name, &["participant", "sql"], &configuration)?);
    }
    system.wait_for_participants(&agents).await?;
    Ok(agents)
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

fn standing(tally: &Tally) -> String {
    format!("{} committed, {} aborted", tally.committed, tally.aborted())
}
