//! What this program is beside the harness: the coordinator, and the agents.

use std::process::ExitCode;

use clap::Subcommand;

/// A child process's role.
#[derive(Subcommand)]
pub(crate) enum Role {
    /// The coordinator, with its own command line.
    #[command(hide = true)]
    Coordinator(Box<unanimity_coordinator::Arguments>),
    /// An agent, with its own command line.
    #[command(hide = true)]
    Participant(Box<unanimity_participant::agent::Arguments>),
}

impl Role {
    /// Plays it, until told to end. The parent's watchdog ends it where the parent is gone.
    pub(crate) async fn play(self) -> ExitCode {
        match self {
            Self::Coordinator(arguments) => match unanimity_coordinator::run(*arguments).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("{error:#}");
                    unanimity_coordinator::exit_code(&error).into()
                }
            },
            Self::Participant(arguments) => {
                match unanimity_participant::agent::run(*arguments).await {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(error) => {
                        eprintln!("{error}");
                        ExitCode::FAILURE
                    }
                }
            }
        }
    }
}
