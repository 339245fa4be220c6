//! The command line.

use std::{collections::BTreeSet, ops::Range};

use clap::Parser;

use crate::plan::Workload;

/// Lives many seeded lives of the real engine, and checks in each that every promise is kept.
///
/// A life is about half a minute of simulated time: clients move money with transactions and sagas between two to four model databases, while processes
/// die, disks fail, and messages are lost, doubled and overtaken. Then the faults stop, and all must come to rest. The same seed is the same life,
/// byte for byte. Where a promise is broken, its seed is shrunk to the requests and faults that it takes, and the trace is printed with the command
/// that shows it again.
///
/// Exit code: 0 where every promise was kept, 1 where one was broken, 2 where the arguments are wrong.
#[derive(Debug, Parser)]
#[command(name = "unanimity-sim", version)]
pub(crate) struct Arguments {
    /// The lives to live, as A..B, without B.
    #[arg(long, value_name = "A..B", default_value = "0..2000", value_parser = seeds)]
    pub(crate) seeds: Range<u64>,
    /// What clients ask for.
    #[arg(long, value_enum, default_value = "mixed")]
    pub(crate) workload: Workload,
    /// Leave out all of the plan but these entries, as a shrunk failure names them; for one seed.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    pub(crate) only: Vec<usize>,
    /// Print the plan and what happens, line by line; for one seed.
    #[arg(long)]
    pub(crate) trace: bool,
    /// Don't shrink what fails.
    #[arg(long)]
    pub(crate) whole: bool,
    /// Print the figures as one line of JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Threads [default: as many as there are cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) jobs: Option<u16>,
}

impl Arguments {
    /// The only seed, where the arguments ask for one.
    ///
    /// # Errors
    /// Where they are for one seed, and there are more; says what to do.
    pub(crate) fn single(&self) -> Result<Option<u64>, String> {
        let (first, count) = (self.seeds.start, self.seeds.end - self.seeds.start);
        match (self.trace || !self.only.is_empty(), count) {
            (false, _) => Ok(None),
            (true, 1) => Ok(Some(first)),
            (true, _) => Err(format!(
                "--trace and --only are for one life, and --seeds names {count}: give --seeds {first}..{}",
                first + 1
            )),
        }
    }

    pub(crate) fn only(&self) -> Option<BTreeSet<usize>> {
        (!self.only.is_empty()).then(|| self.only.iter().copied().collect())
    }
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let wrong = || "give two numbers, as in 0..2000".to_owned();
    let (first, end) = text.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let (first, end) = (number(first)?, number(end)?);
    if first >= end {
        return Err(format!(
            "there is nothing in {first}..{end}: the second number must be larger"
        ));
    }
    Ok(first..end)
}
