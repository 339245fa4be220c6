//! The coordinator's binary.

use std::process::ExitCode;

use clap::Parser as _;
use unanimity_coordinator::{Arguments, exit_code, run};

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("unanimity-coordinator: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}
