//! The real engine, model-checked: every order of events of small configurations, each explored to its end.
//!
//! What stands under the engine is as small as it can be: a log whose un-synced end a crash takes away or leaves, sessions that break and lose
//! what is on them, or let it arrive late or twice, databases that keep what they have prepared. Everything that the engine does is its own code.

mod action;
mod client;
mod configuration;
mod coordinator;
mod model;
mod promise;
mod report;
mod sight;
mod site;
#[cfg(test)]
mod tests;
mod world;

use std::process::ExitCode;

use clap::{Parser, error::ErrorKind};

use crate::configuration::Configuration;

/// Explores every order of events of small configurations of the real engine, and checks every promise in every state.
///
/// Exits 0 if all promises are kept, 1 if one is broken (with a shortest trace to it), 2 for a mistake on the command line.
#[derive(Debug, Parser)]
#[command(name = "unanimity-model")]
struct Arguments {
    /// Only this configuration; may be given several times. See --list.
    #[arg(long, value_name = "NAME")]
    configuration: Vec<String>,
    /// The large configurations too: minutes rather than seconds.
    #[arg(long)]
    deep: bool,
    /// Print the configurations and what each is about.
    #[arg(long)]
    list: bool,
    /// Print the figures as one line of JSON.
    #[arg(long)]
    json: bool,
    /// How many threads explore.
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: u8,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for each in configuration::all() {
            let deep = if each.deep { " (--deep)" } else { "" };
            println!("{:<16} {}{deep}", each.name, each.about);
        }
        return ExitCode::SUCCESS;
    }
    let all = configuration::all();
    let chosen = chosen(&all, &arguments);
    let mut runs = Vec::new();
    report::heading();
    for each in chosen {
        let findings = model::explore(each, arguments.threads.into());
        report::configuration(each, &findings);
        let broken = report::violations(&findings) > 0;
        runs.push((each, findings));
        if broken {
            break; // What breaks a small world would break the larger ones, and take longer.
        }
    }
    if arguments.json {
        println!("{}", report::figures(&runs));
    }
    let violations: usize = runs.iter().map(|(_, f)| report::violations(f)).sum();
    if violations == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Those that were asked for; ends the program where there is no such one.
fn chosen<'a>(all: &'a [Configuration], arguments: &Arguments) -> Vec<&'a Configuration> {
    let known = |name: &String| all.iter().any(|each| each.name == name);
    if let Some(unknown) = arguments.configuration.iter().find(|name| !known(name)) {
        let problem = format!("--configuration: there is no {unknown:?}; --list names them all\n");
        clap::Error::raw(ErrorKind::InvalidValue, problem).exit();
    }
    let named =
        |each: &&Configuration| arguments.configuration.iter().any(|name| name == each.name);
    let daily = |each: &&Configuration| {
        arguments.configuration.is_empty() && (arguments.deep || !each.deep)
    };
    all.iter()
        .filter(|each| named(each) || daily(each))
        .collect()
}
