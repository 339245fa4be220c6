//! The process around the coordinator: settings, logging, signals.

use std::{
    io::{self, IsTerminal},
    process,
};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::{EnvFilter, util::SubscriberInitExt as _};

use crate::{
    arguments::Arguments,
    config::{Config, LogFormat},
    exit::{self, Failure},
    server::serve,
};

/// Runs the coordinator as a process of its own: until SIGTERM or SIGINT, then it drains.
///
/// # Errors
/// What kept it from serving; [`crate::exit_code`] has the code that belongs to it.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config =
        Config::load(&arguments).map_err(|error| Failure::new(exit::CONFIGURATION, error))?;
    start_logging(&config)?;
    if let Some(bug) = option_env!("UNANIMITY_SEEDED_BUG") {
        warn!(
            "THIS COORDINATOR HAS A SEEDED BUG: {bug}. It loses money on purpose; it is for the proof harness alone"
        );
    }
    #[cfg(feature = "failpoints")]
    unanimity_failpoint::arm(crate::FAILPOINTS)
        .map_err(|unusable| Failure::new(exit::CONFIGURATION, unusable))?;
    let shutdown = CancellationToken::new();
    tokio::spawn(heed(
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        shutdown.clone(),
    ));
    serve(config, shutdown, None).await
}

/// The first signal asks the coordinator to drain, the second ends the process.
async fn heed(mut terminate: Signal, mut interrupt: Signal, shutdown: CancellationToken) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let name = next().await;
    info!("{name}: stopping; once more to stop at once");
    shutdown.cancel();
    let name = next().await;
    warn!("{name} again: stopping at once; what is decided goes on after the next start");
    process::exit(exit::IMPATIENT.into());
}

fn start_logging(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_filter).map_err(|error| {
        Failure::new(
            exit::CONFIGURATION,
            format!("log_filter: {:?} can't be used: {error}", config.log_filter),
        )
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let started = match config.log_format {
        LogFormat::Text => lines.finish().try_init(),
        LogFormat::Json => lines.json().finish().try_init(),
    };
    if started.is_err() {
        // The program around us has its own logging, which takes our lines too.
        info!("log lines go where the program sends them");
    }
    Ok(())
}
