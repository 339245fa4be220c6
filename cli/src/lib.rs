//! The operator's command: looks at transactions, participants and the log, and settles what can't settle itself.
//!
//! Data goes to stdout and everything else to stderr; the exit code tells a script what happened without reading either. No command
//! decides anything by itself: what changes a transaction is asked of the coordinator.

mod confirm;
mod connection;
mod exit;
mod in_doubt;
mod lock;
mod log;
mod output;
mod participant;
mod status;
mod tx;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{connection::Connection, exit::Failure, output::Format};

/// No wait is longer: clocks and gRPC deadlines can't hold any duration.
const LONGEST_WAIT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Looks at distributed transactions, and settles what can't settle itself.
#[derive(Debug, Parser)]
#[command(name = "unanimity", version, after_long_help = exit::HELP, after_help = "Exit codes: see --help.")]
pub struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Where the coordinator listens.
    #[arg(
        long,
        global = true,
        value_name = "URI",
        env = "UNANIMITY_COORDINATOR",
        default_value = "http://127.0.0.1:7420"
    )]
    coordinator: String,
    /// How to print data on stdout.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    /// How long to wait for the connection and for each answer, like 10s or 500ms; 30 days at most.
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// Authorities to trust, a PEM file; the system's by default. Needs an https address.
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The certificate to show, a PEM file.
    #[arg(long, global = true, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// The certificate's key, a PEM file.
    #[arg(long, global = true, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Transactions, and sagas among them.
    #[command(subcommand, alias = "transaction")]
    Tx(tx::Command),
    /// Participants and their sessions.
    #[command(subcommand)]
    Participant(participant::Command),
    /// Branches that are prepared and not settled.
    #[command(subcommand)]
    InDoubt(in_doubt::Command),
    /// Locks that sagas hold.
    #[command(subcommand)]
    Lock(lock::Command),
    /// The coordinator's write-ahead log, read from its directory without a coordinator.
    #[command(subcommand)]
    Log(log::Command),
    /// The coordinator itself.
    Status,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration = text
        .parse()
        .map_err(|error: jiff::Error| error.to_string())?;
    match Duration::try_from(parsed) {
        Ok(duration) if !duration.is_zero() => Ok(duration.min(LONGEST_WAIT)),
        _ => Err("it must be longer than nothing".into()),
    }
}

/// Runs the command, and says on stderr what went wrong and what to do about it.
pub async fn run(arguments: Arguments) -> ExitCode {
    match dispatch(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn dispatch(Arguments { global, command }: Arguments) -> Result<(), Failure> {
    let format = global.output;
    // A question to the operator comes before anything can fail halfway.
    match &command {
        Command::InDoubt(command) => command.confirm()?,
        Command::Tx(command) => command.confirm()?,
        _ => {}
    }
    let command = match command {
        Command::Log(command) => return command.run(format),
        command => command,
    };
    let connection = Connection::open(&global).await?;
    match command {
        Command::Tx(command) => command.run(connection, format).await,
        Command::Participant(command) => command.run(connection, format).await,
        Command::InDoubt(command) => command.run(connection, format).await,
        Command::Lock(command) => command.run(connection, format).await,
        Command::Status => status::run(connection, format).await,
        Command::Log(_) => unreachable!("a log is read without a coordinator, above"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_help_tells_the_exit_codes() {
        let help = Arguments::command().render_long_help().to_string();
        for line in [
            "Exit codes:",
            "4  wrong state",
            "7  outcome unknown",
            "UNANIMITY_COORDINATOR",
            "in-doubt",
        ] {
            assert!(help.contains(line), "{line:?} is missing in:\n{help}");
        }
    }

    #[test]
    fn commands_parse_or_are_refused() {
        let id = "u1.0a1b2c3d.1.0198f0a0b1c27d3e8f90a1b2c3d4e5f6";
        let good = [
            "status",
            "tx list --state committing --state heuristic --participant bank1 --limit 5 -o json",
            &format!("tx get {id}"),
            &format!("--timeout 500ms tx abort {id} --reason stuck"),
            &format!(
                "tx retry {id} --coordinator https://c:1 --ca a.pem --certificate b.pem --key c.pem"
            ),
            "tx list --state running --state compensating --state compensated",
            &format!("tx cancel {id}"),
            &format!("tx resolve-step {id} pay --reason paid-in-cash --yes"),
            "participant list",
            "lock list",
            "in-doubt list",
            &format!("in-doubt resolve {id}.2 --committed --reason restored-from-backup --yes"),
            "log verify /var/lib/unanimity/log",
            "log dump log --from 17",
        ];
        for line in good {
            let parsed = Arguments::try_parse_from(format!("unanimity {line}").split(' '));
            assert!(
                parsed.is_ok(),
                "{line}: {}",
                parsed.err().map(|e| e.to_string()).unwrap_or_default()
            );
        }
        let bad = [
            "",
            "tx list --state lost",
            "tx get",
            "--timeout 0s status",
            "status --certificate b.pem",
            &format!("tx resolve-step {id} pay"),
            &format!("tx resolve-step {id} pay --reason short"),
            &format!("tx resolve-step {id} --reason paid-in-cash"),
            &format!("in-doubt resolve {id}.0 --committed --reason restored-from-backup"),
            "in-doubt resolve 2 --committed --reason restored-from-backup",
            &format!("in-doubt resolve {id}.2 --reason restored-from-backup"),
            &format!("in-doubt resolve {id}.2 --committed --aborted --reason restored-from-backup"),
            &format!("in-doubt resolve {id}.2 --committed"),
            &format!("in-doubt resolve {id}.2 --committed --reason short"),
        ];
        for line in bad {
            let parsed = Arguments::try_parse_from(format!("unanimity {line}").split_whitespace());
            assert_eq!(
                parsed.err().map(|error| error.exit_code()),
                Some(2),
                "{line}"
            );
        }
    }
}
