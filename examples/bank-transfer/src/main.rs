//! Transfers between banks in different databases, while plugs are pulled.
//!
//! Read [`transfers`] first: it is what an application does. [`bank`] has the tables and the operations that the agents offer, [`plugs`] says
//! whom to kill, [`run`] puts it all together, and [`report`] tells what came of it. How processes are started and killed is in
//! `examples/harness`.

mod bank;
mod plugs;
mod report;
mod run;
mod tally;
mod transfers;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use example_harness::role::Role;
use tempfile::TempDir;
use tokio::select;

use crate::{plugs::Target, run::run};

#[derive(Parser)]
#[command(version, about, long_about = LONG_ABOUT, args_conflicts_with_subcommands = true)]
struct Command {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    arguments: Arguments,
}

const LONG_ABOUT: &str = "Transfers between banks in different databases, while plugs are pulled.

Starts a coordinator and one agent for each bank as processes of their own, moves money between random accounts, kills and \
restarts processes where asked to, and then looks into the databases: money must be conserved, no entry may lack its twin in \
the other bank, and nothing may be left in doubt. Exits with 0 only then.";

/// What is asked for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A bank: sqlite:PATH, postgres://USER:PASSWORD@HOST/DATABASE or mysql://…; may be repeated. Its tables account and entry are made
    /// anew. Without any: two SQLite files in a temporary folder.
    #[arg(long = "bank", value_name = "URL")]
    pub(crate) banks: Vec<String>,

    /// How many transfers to make.
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000)]
    pub(crate) transfers: u64,

    /// How many of them at once.
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) clients: u16,

    /// How many accounts each bank has.
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) accounts: u32,

    /// Kill and restart such processes every second or so, at least three times while transfers run; may be repeated. If need be, a few more
    /// transfers are made.
    #[arg(long = "kill", value_name = "TARGET")]
    pub(crate) kills: Vec<Target>,

    /// The same number gives the same transfers and the same victims. Random by default.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,

    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Command { role, arguments } = Command::parse();
    let ended = match role {
        Some(role) => role.play().await.map(|()| ExitCode::SUCCESS),
        None => transfer(arguments).await,
    };
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

async fn transfer(arguments: Arguments) -> Result<ExitCode> {
    let directory = TempDir::with_prefix("bank-transfer-")?;
    let report = select! {
        report = run(&arguments, directory.path()) => report?,
        // The processes end with the future that held them.
        _ = tokio::signal::ctrl_c() => bail!("interrupted; what was in doubt in a database of yours still is"),
    };
    match arguments.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => println!("{report}"),
    }
    Ok(match report.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
