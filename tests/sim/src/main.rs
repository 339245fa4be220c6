//! Many seeded lives of the real engine, with model databases, disk and network.
//!
//! ```text
//!  seed ──▶ plan ──▶ world ──facts──▶ invariants ──▶ violation ──▶ shrink ──▶ the command that shows it again
//!                     │ engine, disk, network, agents, databases, clients
//!                     └──────────────▶ figures, trace
//! ```
//!
//! The engine is the product's own, and driven as the coordinator drives it; all around it is a model. Nothing here knows a clock or draws a random
//! number that does not come from the seed.

mod arguments;
mod campaign;
mod coverage;
mod database;
mod fact;
mod figures;
mod invariants;
mod life;
mod plan;
mod random;
mod report;
mod shrink;
mod trace;
mod work;
mod world;

use std::process::ExitCode;

use clap::Parser;

use crate::{arguments::Arguments, life::Life};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A panic inside a life is a finding, and told as one.
    std::panic::set_hook(Box::new(|_| {}));
    match arguments.single() {
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(2)
        }
        Ok(Some(seed)) => {
            let life = Life {
                seed,
                workload: arguments.workload,
                only: arguments.only(),
            };
            report::single(&arguments, &life)
        }
        Ok(None) => report::many(&arguments),
    }
}
