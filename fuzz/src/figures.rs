//! What a run of the program comes to.

use std::{fmt, time::Duration};

use serde_json::{Map, Value, json};

use crate::search::Found;

pub(crate) struct Figures<'a> {
    found: &'a [Found],
    seconds: f64,
}

impl<'a> Figures<'a> {
    pub(crate) fn of(found: &'a [Found], time: Duration) -> Self {
        Self {
            found,
            seconds: time.as_secs_f64(),
        }
    }

    pub(crate) fn violations(&self) -> usize {
        self.found.iter().filter(|found| found.broken).count()
    }

    pub(crate) fn json(&self) -> Value {
        let each = |number: fn(&Found) -> u64| -> Map<String, Value> {
            let figure = |found: &Found| (found.target.to_owned(), number(found).into());
            self.found.iter().map(figure).collect()
        };
        let sum = |number: fn(&Found) -> u64| self.found.iter().map(number).sum::<u64>();
        json!({
            "targets": self.found.len(),
            "executions": sum(|found| found.executions),
            "corpus_inputs": sum(|found| found.inputs),
            "coverage_counters": sum(|found| found.coverage),
            "executions_by_target": each(|found| found.executions),
            "coverage_counters_by_target": each(|found| found.coverage),
            "violations": self.violations(),
            "seconds": (self.seconds * 10.0).round() / 10.0,
        })
    }
}

impl fmt::Display for Figures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:20} {:>12} {:>8} {:>10}",
            "target", "executions", "inputs", "coverage"
        )?;
        for found in self.found {
            let Found {
                target,
                executions,
                inputs,
                coverage,
                broken,
            } = found;
            let mark = if *broken { "  BROKEN" } else { "" };
            writeln!(
                f,
                "{target:20} {executions:>12} {inputs:>8} {coverage:>10}{mark}"
            )?;
        }
        write!(f, "{} broken, {:.1} s", self.violations(), self.seconds)
    }
}
