//! What is printed: progress and findings for people on stderr, figures for programs on stdout.

use serde_json::{Map, Value, json};

use crate::{configuration::Configuration, model::Findings};

/// The heading of the table.
pub(crate) fn heading() {
    eprintln!("configuration      unique states   total states  depth  seconds");
}

/// A line of the table, and what was found.
pub(crate) fn configuration(configuration: &Configuration, findings: &Findings) {
    let Findings {
        unique_states,
        total_states,
        depth,
        seconds,
        ..
    } = findings;
    let name = configuration.name;
    eprintln!("{name:<16} {unique_states:>15} {total_states:>14} {depth:>6} {seconds:>8.1}");
    for breach in &findings.breaches {
        eprintln!("\n{name}: \"{}\" is broken: {}", breach.promise, breach.how);
        for (line, number) in breach.trace.iter().zip(1..) {
            eprintln!("{number:>4}  {line}");
        }
        eprintln!("Again: cargo xtask model --configuration {name}\n");
    }
    if findings.breaches.is_empty() {
        for sight in &findings.unseen {
            eprintln!(
                "{name}: never seen, so the model is too small: {}",
                sight.name()
            );
        }
    }
}

/// How many promises were broken, or could not be shown to mean anything.
pub(crate) fn violations(findings: &Findings) -> usize {
    match findings.breaches.len() {
        0 => findings.unseen.len(),
        breaches => breaches,
    }
}

/// One line of JSON.
pub(crate) fn figures(runs: &[(&Configuration, Findings)]) -> Value {
    let mut figures = Map::new();
    for (configuration, findings) in runs {
        let name = configuration.name.replace('-', "_");
        figures.insert(name, one(findings));
    }
    let sum = |of: fn(&Findings) -> usize| runs.iter().map(|(_, f)| of(f)).sum::<usize>();
    let seconds: f64 = runs.iter().map(|(_, f)| f.seconds).sum();
    figures.insert("configurations".into(), json!(runs.len()));
    figures.insert("unique_states".into(), json!(sum(|f| f.unique_states)));
    figures.insert("total_states".into(), json!(sum(|f| f.total_states)));
    figures.insert("violations".into(), json!(sum(violations)));
    figures.insert("seconds".into(), json!(rounded(seconds)));
    figures.into()
}

fn one(findings: &Findings) -> Value {
    json!({
        "unique_states": findings.unique_states,
        "total_states": findings.total_states,
        "depth": findings.depth,
        "violations": violations(findings),
        "seconds": rounded(findings.seconds),
    })
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}
