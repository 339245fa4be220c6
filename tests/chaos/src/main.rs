//! Real processes and databases under load, while every plug is pulled.
//!
//! This program starts a coordinator, agents and databases, lets clients work, hurts all of it by a seeded plan, and then asks the databases
//! themselves whether every promise was kept. It must never believe our own log, nor pass a run in which nothing was hurt.
//!
//! The coordinator and the agents are this very program in other roles, built with the failpoints that products don't have.

mod arguments;
mod bank;
mod check;
mod expected;
mod fault;
mod figures;
mod history;
mod recovery;
mod role;
mod round;
mod run;
mod settle;
mod system;
mod tables;
mod traffic;
mod trial;
mod unit;
mod watch;
mod work;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Mode;

fn main() -> ExitCode {
    let mode = Mode::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(mode.threads())
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(mode.play()),
        Err(error) => {
            eprintln!("no runtime: {error}");
            ExitCode::FAILURE
        }
    }
}
