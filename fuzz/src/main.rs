//! Fuzzes: runs the engine on each target for a while, and tells what it found.

mod arguments;
mod figures;
mod search;

use std::{process::ExitCode, time::Instant};

use anyhow::Result;
use clap::Parser;
use unanimity_fuzz::{Target, corpus};

use crate::{
    arguments::{Arguments, Usage},
    figures::Figures,
    search::Search,
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// Returns how many promises were broken.
fn run(arguments: &Arguments) -> Result<usize> {
    let targets = arguments.targets()?;
    if arguments.list {
        for target in &targets {
            println!("{:20} {}", target.name, target.promise);
        }
        return Ok(0);
    }
    if arguments.replay || arguments.input.is_some() {
        return replay(arguments, &targets).map(|()| 0);
    }
    let started = Instant::now();
    let search = Search::new(arguments)?;
    let found = search.all(&targets)?;
    let figures = Figures::of(&found, started.elapsed());
    if arguments.json {
        println!("{}", figures.json());
    } else {
        println!("{figures}");
    }
    Ok(figures.violations())
}

/// Without the engine; a broken promise shows as a panic.
fn replay(arguments: &Arguments, targets: &[&Target]) -> Result<()> {
    for target in targets {
        let inputs = match &arguments.input {
            Some(path) => vec![(path.display().to_string(), std::fs::read(path)?)],
            None => corpus::inputs(target)?,
        };
        for (name, input) in inputs {
            eprintln!("{}: {name}", target.name);
            (target.check)(&input);
        }
    }
    eprintln!("every promise was kept");
    Ok(())
}
