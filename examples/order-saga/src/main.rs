//! Orders as sagas over databases and services, while plugs are pulled.
//!
//! Read [`orders`] first: it is what an application does. [`offers`] has the tables and operations behind agents of databases, [`stock`] is a
//! service that takes part by the library, and [`payment`] one over plain HTTP that knows nothing of us. [`shop`] starts them all, [`plan`]
//! says what orders there are, [`run`] puts it together, [`check`] looks for broken promises, and [`report`] tells what came of it. How
//! processes are started and killed is in `examples/harness`.

mod check;
mod database;
mod offers;
mod orders;
mod payment;
mod plan;
mod plugs;
mod report;
mod run;
mod shop;
mod stock;
mod tally;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use tempfile::TempDir;
use tokio::select;

use crate::{plugs::Target, run::run, shop::NAMES};

#[derive(Parser)]
#[command(version, about, long_about = LONG_ABOUT, args_conflicts_with_subcommands = true)]
struct Command {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    arguments: Arguments,
}

const LONG_ABOUT: &str = "Orders as sagas over databases and services, while plugs are pulled.

An order is placed, a delivery slot booked, then the items taken from stock and the card charged, both or neither, then it \
is shipped and confirmed. Where it can't be paid for, or the customer cancels it, what was done is undone. Starts a \
coordinator, agents and services as processes of their own, kills and restarts them where asked to, and then looks into the \
databases: each order must be whole, or wholly undone, each step done once, and nothing left reserved. Exits with 0 only then.";

/// What is asked for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where a database is: orders=postgres://…, stock=mysql://… or shipping=sqlite:PATH; may be repeated. Its tables, which are called
    /// example_…, are made anew. Where none is named: a SQLite file in a temporary folder. The stock can't be in PostgreSQL.
    #[arg(long = "database", value_name = "NAME=URL", value_parser = database)]
    pub(crate) databases: Vec<(String, String)>,

    /// How many orders to place.
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000)]
    pub(crate) orders: u64,

    /// How many of them at once.
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) clients: u16,

    /// How many customers there are. Orders of the same one wait for each other.
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) customers: u32,

    /// Kill and restart such processes every second or so, at least three times while orders are under way; may be repeated. If need be, a few
    /// more orders are placed.
    #[arg(long = "kill", value_name = "TARGET")]
    pub(crate) kills: Vec<Target>,

    /// The same number gives the same orders and the same victims. Random by default.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,

    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

fn database(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, url)) if NAMES.contains(&name) => Ok((name.to_owned(), url.to_owned())),
        _ => Err(format!(
            "write it as NAME=URL, the name one of {}",
            NAMES.join(", ")
        )),
    }
}

/// What the child processes are.
#[derive(Subcommand)]
enum Role {
    #[command(flatten)]
    Ours(example_harness::role::Role),
    #[command(hide = true)]
    Stock(stock::Arguments),
    #[command(hide = true)]
    Payment(payment::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Command { role, arguments } = Command::parse();
    let ended = match role {
        Some(role) => play(role).await.map(|()| ExitCode::SUCCESS),
        None => order(arguments).await,
    };
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

async fn play(role: Role) -> Result<()> {
    match role {
        Role::Ours(role) => role.play().await,
        Role::Stock(arguments) => stock::run(arguments).await,
        Role::Payment(arguments) => payment::run(arguments).await,
    }
}

async fn order(arguments: Arguments) -> Result<ExitCode> {
    let directory = TempDir::with_prefix("order-saga-")?;
    let report = select! {
        report = run(&arguments, directory.path()) => report?,
        // The processes end with the future that held them.
        _ = tokio::signal::ctrl_c() => bail!("interrupted; orders that were under way in databases of yours still are"),
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
