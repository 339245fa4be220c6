//! The figures of `docs/proof.md`: written from what the harnesses recorded in `docs/proof/*.jsonl`, never by hand.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::harness::root;

const BEGIN: &str = "<!-- figures: written by `cargo xtask proof` -->";
const END: &str = "<!-- end of figures -->";

/// What several runs of a harness amount to.
#[derive(Clone, Copy)]
enum Runs {
    /// Each adds to what was tried.
    AddUp,
    /// Each tries the same; the last one counts.
    Repeat,
}

const HARNESSES: [(&str, &str, Runs); 6] = [
    ("sim", "Simulation", Runs::AddUp),
    ("model", "Model checking", Runs::Repeat),
    ("crash-states", "The log's crash states", Runs::Repeat),
    ("chaos", "Chaos on real processes", Runs::AddUp),
    ("bugs", "Seeded bugs", Runs::Repeat),
    ("fuzz", "Fuzzing", Runs::AddUp),
];

/// One line of a file of figures.
#[derive(Deserialize)]
struct Run {
    date: String,
    commit: String,
    command: String,
    figures: Map<String, Value>,
}

/// Writes the figures into the page.
///
/// # Errors
/// Where a file can't be read or written, or the page has no place for them.
pub(crate) fn write() -> Result<()> {
    let page = fs::read_to_string(path())?;
    fs::write(path(), with_figures(&page)?)?;
    Ok(())
}

/// Checks that the page shows what was recorded.
///
/// # Errors
/// Where it does not.
pub(crate) fn check() -> Result<()> {
    let page = fs::read_to_string(path())?;
    if with_figures(&page)? != page {
        bail!("docs/proof.md does not show the figures of docs/proof: run cargo xtask proof");
    }
    Ok(())
}

fn path() -> PathBuf {
    root().join("docs/proof.md")
}

fn with_figures(page: &str) -> Result<String> {
    let parts = page
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.with_context(|| format!("docs/proof.md lacks {BEGIN} or {END}"))?;
    Ok(format!("{before}{BEGIN}\n{}\n{END}{after}", figures()?))
}

fn figures() -> Result<String> {
    let mut text = String::new();
    for (name, title, runs) in HARNESSES {
        let file = root().join(format!("docs/proof/{name}.jsonl"));
        let Ok(lines) = fs::read_to_string(&file) else {
            continue;
        };
        let all: Vec<Run> = lines
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{} can't be read", file.display()))?;
        section(&mut text, title, runs, &all)?;
    }
    Ok(text)
}

fn section(text: &mut String, title: &str, runs: Runs, all: &[Run]) -> Result<()> {
    let counted = match runs {
        Runs::AddUp => all,
        Runs::Repeat => &all[all.len().saturating_sub(1)..],
    };
    writeln!(text, "\n### {title}\n")?;
    for run in counted {
        let Run {
            date,
            commit,
            command,
            ..
        } = run;
        writeln!(text, "- `{command}` at {commit}, {date}")?;
    }
    let mut total = BTreeMap::new();
    for run in counted {
        add("", &run.figures, &mut total);
    }
    writeln!(text, "\n| figure | value |\n|---|---:|")?;
    for (name, value) in total {
        writeln!(text, "| {} | {} |", name.replace('_', " "), number(value))?;
    }
    Ok(())
}

/// Adds the figures of a run to those of the runs before it.
fn add(prefix: &str, figures: &Map<String, Value>, total: &mut BTreeMap<String, f64>) {
    for (name, value) in figures {
        let name = match prefix {
            "" => name.clone(),
            prefix => format!("{prefix}: {name}"),
        };
        match value {
            Value::Object(inner) => add(&name, inner, total),
            value => {
                let Some(value) = value.as_f64() else {
                    continue;
                };
                let combine = combination(&name);
                total
                    .entry(name)
                    .and_modify(|sum| *sum = combine(*sum, value))
                    .or_insert(value);
            }
        }
    }
}

/// The longest of several runs is the longest of all; most other figures count something.
fn combination(name: &str) -> fn(f64, f64) -> f64 {
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    if has(&["longest", "max", "p99", "median", "depth"]) {
        f64::max
    } else if has(&["min_", ": min", "shortest", "per_second"]) {
        f64::min
    } else {
        |sum, value| sum + value
    }
}

/// With thin groups of three digits, and at most one decimal.
fn number(value: f64) -> String {
    let whole = format!("{:.0}", value.trunc().abs());
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let sign = if value < 0.0 { "-" } else { "" };
    match (value.fract().abs() * 10.0).round() {
        0.0 => format!("{sign}{grouped}"),
        tenths if tenths < 10.0 => format!("{sign}{grouped}.{tenths:.0}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(figures: Value) -> Run {
        Run {
            date: "2026-01-01 00:00".into(),
            commit: "abc".into(),
            command: "cargo xtask sim".into(),
            figures: figures.as_object().expect("an object").clone(),
        }
    }

    fn shown(runs: Runs) -> String {
        let all = [
            run(json!({ "seeds": 1000, "longest_ms": 7, "by": { "abort": 1.25 } })),
            run(json!({ "seeds": 2000, "longest_ms": 5, "by": { "abort": 2 } })),
        ];
        let mut text = String::new();
        section(&mut text, "Title", runs, &all).expect("it can be written");
        text
    }

    #[test]
    fn runs_that_add_up_are_summed_but_for_the_longest_of_something() {
        let text = shown(Runs::AddUp);
        assert!(text.contains("| seeds | 3,000 |"), "{text}");
        assert!(text.contains("| longest ms | 7 |"), "{text}");
        assert!(text.contains("| by: abort | 3.3 |"), "{text}");
    }

    #[test]
    fn of_runs_that_repeat_the_last_one_counts() {
        let text = shown(Runs::Repeat);
        assert!(text.contains("| seeds | 2,000 |"), "{text}");
        assert!(text.contains("| longest ms | 5 |"), "{text}");
    }

    #[test]
    fn a_page_without_a_place_for_figures_is_refused() {
        let error = with_figures("nothing").expect_err("no place");
        assert!(error.to_string().contains("lacks"), "{error}");
    }
}
