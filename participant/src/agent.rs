//! The agent: a process around one database or one service, whose work is the named operations of its configuration.
//!
//! Around a database it is a [`Resource`] behind a session and little else. Nothing of a transaction lives in it that the database doesn't hold too, so that it
//! can be killed at any moment: prepared branches stay prepared, and the coordinator finds them when the agent is back. It must never start over
//! a database that can't keep a vote: what [`Resource::connect`] refuses ends the process, with what to do about it.

use std::{
    io::{self, IsTerminal},
    sync::Arc,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    config::{Config, ConfigError, EXAMPLE, SqlArguments},
    http::{self, HttpArguments, HttpConfig},
    resource::{PreflightError, Resource, ResourceOptions},
    session::{self, Backoff, InvalidOptions, Operations, Session, SessionOptions, Tls, Warnings},
};

const PURGE_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// The agent's command line. As `Args` it can be a subcommand of another program too, which then is an agent in another role.
#[derive(Parser)]
#[command(name = "unanimity-participant", version, about = "Lets a database or a service take part in Unanimity's transactions", long_about = LONG_ABOUT)]
pub struct Arguments {
    /// How to log.
    #[command(flatten)]
    pub log: LogArguments,
    /// What to put an agent around.
    #[command(subcommand)]
    pub resource: ResourceArguments,
}

const LONG_ABOUT: &str = "Lets a database or a service take part in Unanimity's transactions.

The agent stands beside a database, or a service in any language, dials the coordinator, and does what transactions ask \
of it: it runs the operations, prepares, and commits or rolls back as the coordinator decides. It needs no open port. It \
can be stopped or killed at any moment; what is prepared stays so until it is back.";

/// What to put an agent around.
#[derive(Subcommand)]
pub enum ResourceArguments {
    /// PostgreSQL, MySQL, MariaDB or SQLite.
    #[command(long_about = SQL_ABOUT, after_long_help = example(EXAMPLE))]
    Sql(SqlArguments),
    /// A service in any language, by its own HTTP endpoints.
    #[command(long_about = http::ABOUT, after_long_help = example(http::EXAMPLE))]
    Http(HttpArguments),
}

const SQL_ABOUT: &str = "PostgreSQL, MySQL, MariaDB or SQLite.

Start it with a file:      unanimity-participant sql --config agent.toml
or, to try things out:     unanimity-participant sql --name bank_a --database postgres://… --allow-sql

A flag wins over its environment variable, that over the file, and the file over the default. The database is checked \
before anything else: where it can't keep a vote, the agent says what to change and stops. More agents of one name on \
one PostgreSQL or MySQL database share the work; a SQLite database takes one agent.";

fn example(file: &str) -> String {
    format!(
        "A whole configuration file:\n\n{}",
        file.lines()
            .map(|line| format!("  {line}\n"))
            .collect::<String>()
    )
}

/// How to log, on standard error.
#[derive(Args)]
pub struct LogArguments {
    /// The form of the log.
    #[arg(
        long,
        value_name = "FORM",
        env = "UNANIMITY_LOG_FORMAT",
        default_value = "text",
        global = true
    )]
    pub log_format: LogFormat,
    /// What to log: a level, or levels by module, such as info,unanimity_participant=debug.
    #[arg(
        long,
        value_name = "FILTER",
        env = "UNANIMITY_LOG",
        default_value = "info",
        global = true
    )]
    pub log: String,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// Why an agent can't run. Each is for a human to cure; what passes by itself is waited for.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What to log can't be understood.
    #[error("--log {0:?} is no filter; write a level such as info or debug")]
    Log(String),
    /// The database, or the journal, can't keep a vote as it is.
    #[error("{problem}\n  to cure it: {remedy}")]
    Refused {
        /// What is wrong with it.
        problem: String,
        /// What to change.
        remedy: String,
    },
    /// The session can't work so.
    #[error(transparent)]
    Session(#[from] InvalidOptions),
    /// A point that is to kill the process can't be set.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Failpoints(#[from] unanimity_failpoint::Unusable),
    /// Signals can't be listened for.
    #[error("signals can't be listened for: {0}")]
    Signals(#[source] io::Error),
}

/// Runs the agent that the command line asks for, until SIGTERM or SIGINT; a second one ends the process at once.
///
/// # Errors
/// Where a human must change something first.
pub async fn run(arguments: Arguments) -> Result<(), AgentError> {
    log_to_stderr(&arguments.log)?;
    if let Some(bug) = option_env!("UNANIMITY_SEEDED_BUG") {
        tracing::warn!(
            "THIS AGENT HAS A SEEDED BUG: {bug}. It loses money on purpose; it is for the proof harness alone"
        );
    }
    #[cfg(feature = "failpoints")]
    unanimity_failpoint::arm(crate::FAILPOINTS)?;
    let shutdown = CancellationToken::new();
    match arguments.resource {
        ResourceArguments::Sql(arguments) => {
            let config = Config::load(arguments)?;
            stop_on_signals(shutdown.clone()).map_err(AgentError::Signals)?;
            serve(config, shutdown).await
        }
        ResourceArguments::Http(arguments) => {
            let config = HttpConfig::load(arguments)?;
            stop_on_signals(shutdown.clone()).map_err(AgentError::Signals)?;
            http::serve(config, shutdown).await
        }
    }
}

/// Runs an agent around a database until `shutdown`. Waits for a database or a coordinator that is away.
///
/// # Errors
/// Where the database, or the configuration, can't work before a human changes something.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), AgentError> {
    session::check(&config.coordinator, &config.name, config.tls.as_ref())?;
    let Config {
        coordinator, tls, ..
    } = config.clone();
    let options = resource_options(config);
    let name = options.participant.clone();
    let Some(resource) = shutdown
        .run_until_cancelled(connect(options))
        .await
        .transpose()?
    else {
        return Ok(());
    };
    let resource = Arc::new(resource);
    let session = Session::new(
        Arc::clone(&resource),
        session_options(&resource, name, coordinator, tls),
    )?;
    purge_hourly(resource, shutdown.clone());
    session.run(shutdown).await;
    Ok(())
}

fn resource_options(config: Config) -> ResourceOptions {
    ResourceOptions {
        url: config.database,
        participant: config.name,
        connections: config.connections.get(),
        catalog: config.catalog,
        // Two databases that shared a journal would lose each other's votes: it lies beside its database, always.
        marker_retention: config.marker_retention,
    }
}

/// Connects to the database, however long it is away.
pub(crate) async fn connect(options: ResourceOptions) -> Result<Resource, AgentError> {
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(2));
    let mut warnings = Warnings::default();
    loop {
        match Resource::connect(options.clone()).await {
            Ok(resource) => {
                tracing::info!(
                    participant = options.participant,
                    resource = resource.identity(),
                    "the database can vote"
                );
                return Ok(resource);
            }
            Err(PreflightError::Refused { problem, remedy }) => {
                return Err(AgentError::Refused { problem, remedy });
            }
            Err(PreflightError::Unavailable(problem)) => {
                let participant = &options.participant;
                match warnings.due() {
                    true => tracing::warn!(
                        participant,
                        problem,
                        "the database can't be reached; trying again"
                    ),
                    false => tracing::debug!(
                        participant,
                        problem,
                        "the database can't be reached; trying again"
                    ),
                }
                tokio::time::sleep(backoff.next_slow()).await;
            }
        }
    }
}

/// What a session over a database announces.
pub(crate) fn session_options(
    resource: &Resource,
    participant: String,
    coordinator: String,
    tls: Option<Tls>,
) -> SessionOptions {
    SessionOptions {
        coordinator,
        participant,
        agent: session::agent_label(),
        resource: resource.identity().to_owned(),
        capacity: resource.capacity(),
        one_phase: resource.one_phase(),
        settles_steps: true,
        operations: Operations {
            policy: resource.catalog().policy(),
            listed: resource.catalog().signatures(),
        },
        tls,
    }
}

/// Deletes marker rows that are past their time: now, so that an agent which is often restarted does so at all, and then every hour.
pub(crate) fn purge_hourly(resource: Arc<Resource>, shutdown: CancellationToken) {
    tokio::spawn(async move {
        let mut hours = tokio::time::interval(PURGE_INTERVAL);
        while shutdown.run_until_cancelled(hours.tick()).await.is_some() {
            match resource.purge().await {
                Ok(0) => {}
                Ok(rows) => tracing::info!(rows, "old marker rows deleted"),
                Err(unavailable) => {
                    tracing::warn!(%unavailable, "old marker rows could not be deleted; trying again in an hour")
                }
            }
        }
    });
}

/// Another program that runs an agent may have set up its own log: that one stays.
fn log_to_stderr(arguments: &LogArguments) -> Result<(), AgentError> {
    let filter =
        EnvFilter::try_new(&arguments.log).map_err(|_| AgentError::Log(arguments.log.clone()))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    _ = match arguments.log_format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    Ok(())
}

fn stop_on_signals(shutdown: CancellationToken) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => SignalKind::terminate(),
            _ = interrupt.recv() => SignalKind::interrupt(),
        }
    };
    tokio::spawn(async move {
        next().await;
        tracing::info!("stopping; prepared branches stay prepared. A second signal stops at once");
        shutdown.cancel();
        let signal = next().await;
        std::process::exit(128 + signal.as_raw_value());
    });
    Ok(())
}
