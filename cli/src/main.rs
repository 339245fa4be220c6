//! The binary `unanimity`.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    unanimity_cli::run(unanimity_cli::Arguments::parse()).await
}
