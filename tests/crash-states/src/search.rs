//! Going through a recording: at each moment every state that a crash may leave is opened, and compared with what was promised then.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use crate::disk::Disk;
use crate::event::Event;
use crate::figures::Figures;
use crate::image::{Random, State, Thoroughness, each_state};
use crate::promise::Promise;
use crate::recording::Recording;
use crate::recovery::{Candidates, Torn};
use crate::reopen::{Files, Outcome, Reopener};
use crate::violation::Violation;

/// What opening each state gave, so that none is opened twice. It doesn't depend on the run.
#[derive(Debug, Default)]
pub struct Outcomes {
    known: Mutex<HashMap<u64, Arc<Outcome>>>,
}

impl Outcomes {
    /// How many states have been opened.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn of(&self, fingerprint: u64, state: &State<'_>, reopener: &Reopener) -> Result<Arc<Outcome>> {
        if let Some(known) = self.lock().get(&fingerprint) {
            return Ok(Arc::clone(known));
        }
        let outcome = Arc::new(reopener.outcome(&state.files())?);
        self.lock().insert(fingerprint, Arc::clone(&outcome));
        Ok(outcome)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Outcome>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How to search.
#[derive(Debug)]
pub struct Search<'a> {
    /// What is known of states.
    pub outcomes: &'a Outcomes,
    /// Where to open states.
    pub reopener: &'a Reopener,
    /// How many states to open at each moment.
    pub thoroughness: Thoroughness,
    /// Only the state with this fingerprint.
    pub only: Option<u64>,
}

/// What a search through one recording gave.
#[derive(Debug, Default)]
pub struct Findings {
    /// Its counts.
    pub figures: Figures,
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// States whose recovery may be looked at.
    pub candidates: Candidates,
}

impl Search<'_> {
    /// Goes through the recording up to the first broken promise.
    ///
    /// # Errors
    /// Where states can't be set up.
    pub fn through(&self, recording: &Recording) -> Result<Findings> {
        let (mut disk, mut promise, mut torn) = (Disk::default(), Promise::default(), None);
        let mut findings = Findings::default();
        // States that were found sound under the promise as it is.
        let mut checked = HashSet::new();
        for (point, event) in recording.events.iter().enumerate() {
            disk.happen(event);
            let mut said = Ok(());
            if let Event::Say(word) = event {
                checked.clear();
                said = promise.hear(word);
            } else if let Event::Start {
                files,
                promise: given,
            } = event
            {
                promise.clone_from(given);
                torn = self.reopener.torn(files)?;
            }
            if point < recording.from {
                continue;
            }
            if let Err(why) = said {
                findings.violation = Some(Violation::told(recording, point, why));
                return Ok(findings);
            }
            let moment = Moment {
                recording,
                point,
                promise: &promise,
                torn: torn.as_ref(),
            };
            self.at(&disk, &moment, &mut checked, &mut findings)?;
            if findings.violation.is_some() {
                return Ok(findings);
            }
        }
        findings.figures.operations = (recording.events.len() - recording.from) as u64;
        Ok(findings)
    }

    fn at(
        &self,
        disk: &Disk,
        moment: &Moment<'_>,
        checked: &mut HashSet<u64>,
        findings: &mut Findings,
    ) -> Result<()> {
        let mut failed = Ok(());
        let mut random = Random(moment.point as u64);
        findings.figures.crash_points += 1;
        each_state(disk, self.thoroughness, &mut random, &mut |state| {
            let fingerprint = state.fingerprint();
            if self.only.is_some_and(|only| only != fingerprint) {
                return;
            }
            findings.figures.crash_states += 1;
            if failed.is_err() || findings.violation.is_some() || !checked.insert(fingerprint) {
                return;
            }
            match self.outcomes.of(fingerprint, state, self.reopener) {
                Ok(outcome) => moment.check(state, fingerprint, &outcome, findings),
                Err(error) => failed = Err(error),
            }
        });
        failed
    }
}

/// A moment of a recording.
struct Moment<'a> {
    recording: &'a Recording,
    point: usize,
    promise: &'a Promise,
    /// A batch that was torn, and durable, before recovery began; recovery may cut it, but must keep a copy.
    torn: Option<&'a Torn>,
}

impl Moment<'_> {
    fn check(
        &self,
        state: &State<'_>,
        fingerprint: u64,
        outcome: &Outcome,
        findings: &mut Findings,
    ) {
        let kept = |files: &Files| match self.torn {
            Some(torn) if !torn.is_kept(files) => Err(torn.lost()),
            _ => Ok(()),
        };
        let files = state.files();
        let checked = self.promise.check(outcome).and_then(|()| kept(&files));
        if let Err(why) = checked {
            findings.violation = Some(Violation {
                recording: self.recording.clone(),
                point: self.point,
                fingerprint: Some(fingerprint),
                why,
                lost: state.lost(),
                files,
            });
        } else if let Outcome::Sound(sound) = outcome {
            findings.candidates.offer(sound.torn, files, self.promise);
        }
    }
}
