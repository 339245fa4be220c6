//! The command line.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use clap::{Args, Parser};

use crate::{
    fault::{Kind, schedule},
    role::Role,
    run,
};

/// Hurts a coordinator, agents and databases under load, and checks in the databases' own tables that every promise was kept.
///
/// It starts PostgreSQL, MariaDB and SQLite databases of its own, a coordinator and agents, all on the loopback address, and runs in rounds:
/// traffic and faults, then an end to all faults, then the checks. A run is green (exit code 0) only where every promise was kept, every kind of
/// fault landed at least once, and work was in flight when processes were killed. Everything that it starts ends with it.
#[derive(Parser)]
#[command(
    name = "unanimity-chaos",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Example:\n  unanimity-chaos --minutes 10 --seed 7\n  unanimity-chaos --rounds 1 --faults kill,pause"
)]
pub(crate) struct Mode {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    arguments: Arguments,
}

/// How to run.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// What plan of work and faults to follow. How processes run beside each other no seed can fix, so that a run is never quite the same.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Begin no round after so many minutes.
    #[arg(long, value_name = "NUMBER", default_value_t = 3.0, value_parser = minutes)]
    pub(crate) minutes: f64,

    /// End after so many rounds, whatever the minutes say.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) rounds: Option<u64>,

    /// Begin with the plan of this round, rather than of the first.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) first_round: u64,

    /// How long each round's traffic lasts.
    #[arg(long, value_name = "SECONDS", default_value_t = 25, value_parser = clap::value_parser!(u64).range(5..=600))]
    pub(crate) round_seconds: u64,

    /// Only these kinds of faults, each of which then has to land.
    #[arg(long, value_name = "KINDS", value_delimiter = ',', value_enum)]
    pub(crate) faults: Vec<Kind>,

    /// Clients at work at once.
    #[arg(long, value_name = "NUMBER", default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..=500))]
    pub(crate) clients: u16,

    /// Print the figures as one line of JSON, the last on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Arguments {
    /// Traffic of a round.
    pub(crate) fn round_length(&self) -> Duration {
        Duration::from_secs(self.round_seconds)
    }

    /// The faults to be made.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        match self.faults.is_empty() {
            true => Kind::ALL.to_vec(),
            false => {
                let mut kinds = self.faults.clone();
                kinds.sort();
                kinds.dedup();
                kinds
            }
        }
    }

    /// The faults that so many rounds have in their plan.
    pub(crate) fn scheduled(&self, rounds: u64) -> BTreeSet<Kind> {
        let rounds = self.first_round..self.first_round + rounds;
        let plans = rounds
            .flat_map(|round| schedule::of(self.seed, round, self.round_length(), &self.kinds()));
        plans.map(|fault| fault.kind).collect()
    }

    /// The command that follows the plan of a round again.
    pub(crate) fn again(&self, round: u64) -> String {
        let mut command = format!(
            "cargo xtask chaos --seed {} --first-round {round} --rounds 1 --round-seconds {} --clients {}",
            self.seed, self.round_seconds, self.clients
        );
        if !self.faults.is_empty() {
            let names: Vec<_> = self.kinds().iter().map(|kind| kind.name()).collect();
            command += &format!(" --faults {}", names.join(","));
        }
        command
    }
}

impl Mode {
    /// A coordinator and its clients share two cores with three databases here; the harness itself has blocking work besides.
    pub(crate) fn threads(&self) -> usize {
        match self.role {
            Some(_) => 2,
            None => 4,
        }
    }

    /// Plays a role, or runs the harness.
    pub(crate) async fn play(self) -> ExitCode {
        match self.role {
            Some(role) => role.play().await,
            None => run::run(&self.arguments).await,
        }
    }
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.1..=1_440.0).contains(&minutes) => Ok(minutes),
        _ => Err("a number of minutes from 0.1 to 1440".into()),
    }
}
