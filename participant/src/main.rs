//! `unanimity-participant`: the agent around a database or a service.

use std::process::ExitCode;

use clap::Parser;
use unanimity_participant::agent::{self, Arguments};

#[tokio::main]
async fn main() -> ExitCode {
    match agent::run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
