//! Named points at which a process kills itself: a crash at a chosen moment, instead of at a random one.
//!
//! A product crate depends on this one only by its feature `failpoints`, which no product is built with. At its start the process calls
//! [`arm`]; the environment then says which points kill it, and at which time they are reached:
//!
//! ```text
//! FAILPOINTS="coordinator.log.append.after=17*off->return"      the 18th time
//! FAILPOINTS="participant.commit.after=return"                  the first time
//! FAILPOINTS="participant.prepare.after=1%return"               one time in a hundred
//! ```
//!
//! Several are separated by semicolons. There is no other way to arm one: nothing from outside reaches into a running process. A process that
//! kills itself says `failpoint NAME: killed` on standard error, and is gone by SIGKILL: no destructor runs, nothing is flushed, no connection
//! says goodbye.

use std::{collections::BTreeSet, env, fs, io::Write as _, path::Path, process};

use rustix::process::{Signal, getpid, kill_process};

/// The environment variable.
pub const VARIABLE: &str = "FAILPOINTS";

/// Why the variable can't be obeyed.
#[derive(Debug, PartialEq, Eq)]
pub struct Unusable(String);

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{VARIABLE}: {}", self.0)
    }
}

impl std::error::Error for Unusable {}

/// Arms what the environment asks for. `known` are the points of this process; a word that names none of them is refused, for a run in which a
/// point was misspelt would prove nothing.
///
/// # Errors
/// Where a name is not known, or what it is to do can't be understood.
pub fn arm(known: &[&str]) -> Result<(), Unusable> {
    env::var(VARIABLE).map_or(Ok(()), |given| arm_all(&given, known))
}

fn arm_all(given: &str, known: &[&str]) -> Result<(), Unusable> {
    for word in given
        .split(';')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        let (name, actions) = word.split_once('=').ok_or_else(|| {
            Unusable(format!(
                "{word:?} is no NAME=ACTIONS; write for example {word}=return"
            ))
        })?;
        if !known.contains(&name) {
            return Err(Unusable(format!(
                "there is no point {name:?} here; there are {}",
                known.join(", ")
            )));
        }
        fail::cfg(name, actions)
            .map_err(|problem| Unusable(format!("{actions:?} of {name}: {problem}")))?;
    }
    Ok(())
}

/// Kills the process, where the point is armed and its time has come.
pub fn reach(name: &str) {
    if fail::eval(name, |_| ()).is_some() {
        kill(name);
    }
}

fn kill(name: &str) -> ! {
    // Who started us may have closed our standard error; that saves nobody.
    let _ = writeln!(std::io::stderr(), "failpoint {name}: killed");
    let _ = kill_process(getpid(), Signal::KILL);
    // The signal takes effect before the call returns to this thread; should that ever not be so, nothing may be done here any more.
    process::abort()
}

/// The names in all calls of `failpoint!` in the sources below a directory, sorted; with those that stand there twice.
///
/// # Errors
/// Where a file can't be read.
pub fn in_sources(directory: &Path) -> std::io::Result<(BTreeSet<String>, Vec<String>)> {
    let (mut names, mut twice) = (BTreeSet::new(), Vec::new());
    let mut waiting = vec![directory.to_owned()];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path)?;
            for call in text.split("failpoint!(\"").skip(1) {
                let name = call.split('"').next().unwrap_or_default().to_owned();
                if !names.insert(name.clone()) {
                    twice.push(name);
                }
            }
        }
    }
    Ok((names, twice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_no_point_is_refused() {
        let known = ["coordinator.known"];
        let refused = |given: &str| {
            arm_all(given, &known).map_or_else(|refused| refused.to_string(), |()| String::new())
        };
        assert!(refused("coordinator.unknown=return").contains("there are coordinator.known"));
        assert!(refused("coordinator.known").contains("coordinator.known=return"));
        assert!(refused("coordinator.known=explode").contains("explode"));
    }

    #[test]
    fn a_point_takes_effect_at_its_time_and_not_before() {
        assert_eq!(
            arm_all(" test.counted=2*off->return ;", &["test.counted"]),
            Ok(())
        );
        let taken: Vec<bool> = (0..4)
            .map(|_| fail::eval("test.counted", |_| ()).is_some())
            .collect();
        assert_eq!(taken, [false, false, true, true]);
        assert_eq!(fail::eval("test.unarmed", |_| ()), None);
    }
}
