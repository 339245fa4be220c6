//! What an example's executable is beside the example: a coordinator, or an agent.

use anyhow::Result;
use clap::Subcommand;

/// A child process's role, as a hidden subcommand.
#[derive(Subcommand)]
pub enum Role {
    /// The coordinator, with its own command line.
    #[command(hide = true)]
    Coordinator(Box<unanimity_coordinator::Arguments>),
    /// An agent, with its own command line.
    #[command(hide = true)]
    Participant(Box<unanimity_participant::agent::Arguments>),
}

impl Role {
    /// Plays it, until told to end or until the parent is gone.
    ///
    /// # Errors
    /// Where it can't be played.
    pub async fn play(self) -> Result<()> {
        end_with_parent();
        match self {
            Self::Coordinator(arguments) => unanimity_coordinator::run(*arguments).await?,
            Self::Participant(arguments) => unanimity_participant::agent::run(*arguments).await?,
        }
        Ok(())
    }
}

/// For a child: ends the process when the parent is gone, which closes the pipe to our standard input.
pub fn end_with_parent() {
    std::thread::spawn(|| {
        // An error means just the same.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(1);
    });
}
