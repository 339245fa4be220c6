//! Project tasks: `cargo xtask test` sets up what the tests need and runs all of them; `cargo xtask check` runs the quick ones.
//!
//! A task says on standard error what it does and how long each step took, and ends at the first step that fails.

mod bugs;
mod fuzz;
mod harness;
mod install;
mod proof;
mod step;

use std::{
    env,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};
use clap::Parser;

use crate::{
    harness::Harness,
    step::{step, timed},
};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Project tasks")]
enum Task {
    /// Install what is missing, then check and test everything, and let plugs be pulled while money is transferred and orders are placed.
    Test {
        /// Do without what is missing, and fail where it is needed.
        #[arg(long)]
        no_install: bool,
    },
    /// Check the format and the lints.
    Check,
    /// Live many seeded lives of the engine, with model databases, disk and network; further arguments as of `unanimity-sim`.
    Sim(Arguments),
    /// Check every order of events of small configurations of the engine; further arguments as of `unanimity-model`.
    Model(Arguments),
    /// Reopen every legal state of the log's files after a crash; further arguments as of `unanimity-crash-states`.
    CrashStates(Arguments),
    /// Compile in one seeded bug after the other, and see each caught by a harness.
    Bugs(bugs::Arguments),
    /// Pull every plug of real processes and databases; further arguments as of `unanimity-chaos`.
    Chaos(Arguments),
    /// Search for bytes that break what reads them; further arguments as of `unanimity-fuzz`.
    Fuzz(Arguments),
    /// Write the recorded figures into docs/proof.md.
    Proof,
}

#[derive(Default, clap::Args)]
struct Arguments {
    /// Add the figures to those in docs/proof.
    #[arg(long)]
    record: bool,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

impl Arguments {
    /// Runs a harness of this workspace with these.
    fn run(self, name: &'static str, package: &str) -> Result<()> {
        self.run_with(name, package, |_| ())
    }

    /// As above, with something about the command changed.
    fn run_with(
        self,
        name: &'static str,
        package: &str,
        change: impl FnOnce(&mut Command),
    ) -> Result<()> {
        let mut command = cargo(&format!(
            "run --quiet --release --locked --package {package} --"
        ));
        command.args(&self.rest);
        change(&mut command);
        let record = self.record;
        Harness {
            name,
            command,
            record,
        }
        .run()
        .map(drop)
    }
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Test { no_install } => test(!no_install),
        Task::Check => check(),
        Task::Fuzz(arguments) => fuzz::fuzz(arguments),
        Task::Proof => proof::write(),
        Task::Sim(arguments) => sim(arguments),
        Task::Model(arguments) => model(arguments),
        Task::CrashStates(arguments) => crash_states(arguments),
        Task::Bugs(arguments) => bugs::run(&arguments),
        Task::Chaos(arguments) => chaos(arguments),
    };
    match done {
        Ok(()) => {
            eprintln!("\nAll is well.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<()> {
    proof::check()?;
    step("format", &mut cargo("fmt --all --check"))?;
    step(
        "lints",
        &mut cargo("clippy --workspace --all-targets --locked -- -D warnings"),
    )
}

fn test(install: bool) -> Result<()> {
    if install {
        install::missing()?;
    }
    check()?;
    // The tests start the programs, and cargo builds only those of the package under test.
    step("build", &mut cargo("build --workspace --bins --locked"))?;
    step(
        "tests",
        &mut cargo("test --workspace --locked --no-fail-fast"),
    )?;
    step(
        "release build",
        &mut cargo("build --release --bin bank-transfer --bin order-saga --locked"),
    )?;
    step(
        "transfers between two SQLite banks",
        &mut cargo("run --quiet --release --locked --bin bank-transfer"),
    )?;
    step(
        "transfers between PostgreSQL, MariaDB and SQLite, with kills",
        &mut with_databases(
            "bank-transfer",
            "--bank {postgres} --bank {mariadb} --bank {sqlite} --clients 16 --transfers 3000 --kill all",
        )?,
    )?;
    step(
        "orders over PostgreSQL, MariaDB and HTTP, with kills",
        &mut with_databases(
            "order-saga",
            "--database orders={postgres} --database shipping={postgres} --database stock={mariadb} \
             --clients 16 --orders 2000 --kill all",
        )?,
    )?;
    prove()
}

/// A slice of the proofs: `docs/proof.md` tells what they are, and which longer runs were made. The search of the fuzzer runs on demand;
/// that its corpus reads as it should is among the tests.
fn prove() -> Result<()> {
    let slice = Arguments::default;
    timed("lives of the engine", || sim(slice()))?;
    timed("every order of events", || model(slice()))?;
    timed("every state of the log after a crash", || {
        crash_states(slice())
    })?;
    timed("chaos on real processes", || chaos(slice()))?;
    timed("seeded bugs", || bugs::run(&bugs::Arguments::default()))
}

fn sim(arguments: Arguments) -> Result<()> {
    arguments.run("sim", "unanimity-sim")
}

fn model(arguments: Arguments) -> Result<()> {
    arguments.run("model", "unanimity-model")
}

fn crash_states(arguments: Arguments) -> Result<()> {
    arguments.run("crash-states", "unanimity-crash-states")
}

fn chaos(arguments: Arguments) -> Result<()> {
    arguments.run("chaos", "unanimity-chaos --features failpoints")
}

/// An example, with these arguments, on databases of its own.
fn with_databases(example: &str, arguments: &str) -> Result<Command> {
    // By its path: a cargo within a cargo builds everything once more.
    let mut command =
        cargo("run --quiet --locked --package unanimity-tests --bin with-databases --");
    command
        .arg(released(example)?)
        .args(arguments.split_whitespace());
    Ok(command)
}

/// A program that the release build made, beside the debug build that this one is of.
fn released(name: &str) -> Result<PathBuf> {
    let own = env::current_exe()?;
    let target = own
        .ancestors()
        .nth(2)
        .context("it lies in a target directory")?;
    Ok(target.join("release").join(name))
}

/// Cargo with these arguments, which hold no blanks.
fn cargo(arguments: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments.split(' '));
    command
}
