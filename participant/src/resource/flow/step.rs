//! A saga's step: one local transaction, committed at once, and once however often it comes.
//!
//! ```text
//!   execute ────▶ mark ─▶ fences ──────────────────────▶ run ─▶ keep the result ─▶ commit ─▶ done
//!   compensate ─▶ mark ─▶ contest the action's marker ─┬▶ run ─▶ …
//!                                                      └▶ commit ─▶ done: there was nothing to undo
//!   settle ─────▶ the marker ─▶ done, or a tombstone ─▶ never
//! ```
//!
//! The marker row goes first, so that two of one key wait for each other, and is in the transaction of the effect: where the row is, the effect
//! is. A step that fails leaves nothing, here or in the database, for it may come again under the same key: so it has no place in the table
//! of branches, which remembers votes. "It took no effect" is only said by whoever has held the key, or is the first to ask for it.

use std::time::Duration;

use tokio::time::Instant;
use unanimity_proto::v1::AbortCode;

use crate::{
    operation::Statement,
    participant::{BranchId, Compensated, Fence, Refusal, Settled, Step, StepOutcome},
    resource::{
        CONTROL_TIMEOUT, Failure,
        branches::{BranchConnection, lost},
        deadline_after,
        identifier::{check, is_still_marked},
        refusal, step_result,
    },
};

use super::{BeginError, Flow, StepRules, Undone};

/// A lock's key is at most this long, in bytes.
const LOCK_KEY_BYTES_MAX: usize = 128;

/// What the marker row under a step's key says.
enum Found {
    /// It took effect, and gave this back.
    Committed(String),
    /// It never did, and never will.
    Tombstone,
    Nothing,
}

impl<D: StepRules> Flow<D> {
    /// See [`crate::participant::Participant::execute`].
    pub(crate) async fn execute(&self, step: &Step) -> StepOutcome {
        self.once(step, None).await
    }

    /// See [`crate::participant::Participant::compensate`].
    pub(crate) async fn compensate(&self, step: &Step, compensated: &Compensated) -> StepOutcome {
        match check(&compensated.branch) {
            Ok(()) => self.once(step, Some(compensated)).await,
            Err(refusal) => StepOutcome::Refused(refusal),
        }
    }

    /// See [`crate::participant::Participant::settle`].
    pub(crate) async fn settle(&self, branch: &BranchId, age: Duration) -> StepOutcome {
        if check(branch).is_err() {
            // Nothing can ever have been done under that name.
            return StepOutcome::Never;
        }
        let _call = self.branches.call(branch).await;
        if is_still_marked(age, self.retention) {
            match self.database.prove(branch).await {
                Settled::Aborted => return StepOutcome::Never,
                Settled::Committed => {}
                Settled::Lost(problem) | Settled::Retry(problem) => {
                    return StepOutcome::Unknown(problem);
                }
            }
        }
        failpoint!("participant.step.settled");
        match self.look(branch).await {
            Ok(Found::Committed(result)) => StepOutcome::Done { result },
            Ok(Found::Tombstone) => StepOutcome::Never,
            // No tombstone may be written: it would deny what may have been done.
            Ok(Found::Nothing) => self.missing(branch, age),
            Err(problem) => StepOutcome::Unknown(problem),
        }
    }

    async fn once(&self, step: &Step, compensated: Option<&Compensated>) -> StepOutcome {
        let branch = &step.branch;
        if let Err(refusal) = check(branch) {
            return StepOutcome::Refused(refusal);
        }
        let _call = self.branches.call(branch).await;
        if !is_still_marked(step.age, self.retention) {
            return self.by_marker(step).await;
        }
        let deadline = deadline_after(step.timeout);
        // Looked at only when it is to run: what was done before is done, whatever the configuration says by now.
        let operation = self.catalog.resolve(&step.operation, D::DIALECT);
        let work = operation.as_ref().map_or(&[][..], std::slice::from_ref);
        let twice = compensated.is_some() && cfg!(unanimity_bug = "compensated-twice");
        let marker = (!twice).then_some("");
        let mut opened = match self.database.begin(branch, work, marker, deadline).await {
            Ok(opened) => opened,
            Err(BeginError::MarkerTaken) => return self.by_marker(step).await,
            Err(BeginError::Failed(refusal)) => return unbegun(step, ours(refusal)),
            Err(BeginError::Prepared(_) | BeginError::Elsewhere) => {
                return StepOutcome::Unknown(format!("step {branch} is at work elsewhere"));
            }
        };
        failpoint!("participant.step.marked");
        let working = self.work(step, compensated, operation, &mut opened, deadline);
        match working.await {
            Ok(result) => self.commit_step(step, opened, result, deadline).await,
            Err(Failure { refusal, broken }) => {
                self.database.undo(opened, broken).await;
                // A connection that must go may be all that was wrong, a cached statement that no longer fits its tables for one.
                undone(if broken { ours(refusal) } else { refusal })
            }
        }
    }

    /// All that is between the marker and the commit. Gives the result back, where it is wanted.
    async fn work(
        &self,
        step: &Step,
        compensated: Option<&Compensated>,
        operation: Result<Statement, Refusal>,
        opened: &mut D::Branch,
        deadline: Instant,
    ) -> Result<String, Failure> {
        match compensated {
            // Fences are for actions alone: a saga must always be able to undo its own effect, and keeps its locks until it has.
            Some(compensated) => {
                if self.is_empty(compensated, opened, deadline).await? {
                    return Ok(String::new());
                }
            }
            None if cfg!(unanimity_bug = "token-not-checked") => {}
            None => self.pass_fences(&step.fences, opened, deadline).await?,
        }
        let statement = operation?;
        let running = self.run(opened, &statement, deadline, step.keep_result);
        let ran = running.await?;
        if !step.keep_result {
            return Ok(String::new());
        }
        let result = step_result::json(&statement, ran.result)?;
        let keeping = self.database.keep(opened, &step.branch, &result, deadline);
        keeping.await.map_err(failed_ours)?;
        Ok(result)
    }

    /// Whether there is nothing to undo. Waits for an action that is at work, and afterwards no late one gets through.
    async fn is_empty(
        &self,
        compensated: &Compensated,
        opened: &mut D::Branch,
        deadline: Instant,
    ) -> Result<bool, Failure> {
        let action = &compensated.branch;
        let contesting = self.database.contest(opened, action, deadline);
        Ok(match contesting.await.map_err(failed_ours)? {
            Undone::Committed => false,
            Undone::Tombstone => true,
            Undone::Absent if cfg!(unanimity_bug = "empty-compensation-runs") => false,
            // Of an action that is known to have taken effect the marker was purged: sagas may live longer than markers.
            Undone::Absent => compensated.unsettled,
        })
    }

    /// Refuses a step whose locks have had a newer holder here. In one order, so that no two wait for each other.
    async fn pass_fences(
        &self,
        fences: &[Fence],
        opened: &mut D::Branch,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let mut fences: Vec<&Fence> = fences.iter().collect();
        fences.sort_by_key(|fence| &fence.key);
        for Fence { key, token } in fences {
            let own = i64::try_from(*token).ok();
            let Some(own) = own.filter(|_| key.len() <= LOCK_KEY_BYTES_MAX) else {
                let message = format!("lock {key:?} with token {token} can't be kept here");
                return Err(refusal(AbortCode::InvalidOperation, message).into());
            };
            let raising = self.database.raise(opened, key, own, deadline);
            if raising.await.map_err(failed_ours)? > own {
                return Err(lost(format!(
                    "lock {key:?} has passed on: a newer holder of it has been here"
                ))
                .into());
            }
        }
        Ok(())
    }

    /// Commits. Where no clear answer came the truth is found out, if the database can be asked.
    async fn commit_step(
        &self,
        step: &Step,
        mut opened: D::Branch,
        result: String,
        deadline: Instant,
    ) -> StepOutcome {
        let branch = &step.branch;
        failpoint!("participant.step.commit.before");
        let committed = self.database.commit(&mut opened, branch, deadline).await;
        failpoint!("participant.step.commit.after");
        let Err(refusal) = committed else {
            opened.release();
            return StepOutcome::Done { result };
        };
        match self.find_out(branch, opened).await {
            // Another process may have done it meanwhile: the result is what stands there.
            Settled::Committed => self.by_marker(step).await,
            Settled::Aborted => undone(refusal),
            Settled::Lost(problem) | Settled::Retry(problem) => StepOutcome::Unknown(problem),
        }
    }

    /// Whether a step told to commit did so. Asks for a while; without end only where the connection can't be let go before that is known.
    async fn find_out(&self, branch: &BranchId, opened: D::Branch) -> Settled {
        let until = Instant::now() + CONTROL_TIMEOUT;
        let (mut left, mut pause) = (Some(opened), Duration::from_millis(20));
        loop {
            let settled = self.database.find_out(branch, &mut left).await;
            match &settled {
                Settled::Committed | Settled::Aborted => {
                    if let Some(connection) = left {
                        connection.release();
                    }
                    return settled;
                }
                Settled::Lost(_) | Settled::Retry(_)
                    if left.is_none() && Instant::now() >= until =>
                {
                    return settled;
                }
                Settled::Lost(problem) | Settled::Retry(problem) => {
                    tracing::warn!(%branch, problem, "whether a step committed is not known yet");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// What became of a step that can't be done now, for its marker is taken, or may have been purged.
    async fn by_marker(&self, step: &Step) -> StepOutcome {
        let branch = &step.branch;
        match self.look(branch).await {
            Ok(Found::Committed(result)) => StepOutcome::Done { result },
            Ok(Found::Tombstone) => StepOutcome::Refused(lost(format!(
                "step {branch} was settled, or compensated, before it came: it takes no effect any more"
            ))),
            Ok(Found::Nothing) => self.missing(branch, step.age),
            Err(problem) => StepOutcome::Unknown(problem),
        }
    }

    /// Of a step so old that its marker may have been purged, a missing one proves nothing.
    fn missing(&self, branch: &BranchId, age: Duration) -> StepOutcome {
        StepOutcome::Unknown(if is_still_marked(age, self.retention) {
            format!("the marker of step {branch} was taken, and is gone")
        } else {
            let hours = age.as_secs() / 3_600;
            format!(
                "step {branch} was first sent {hours} h ago, and its marker, if it had one, may have been purged: whether it took effect can't \
                 be told here, and it is not done again. Look at what it would have changed, do by hand what is missing, then mark it as done"
            )
        })
    }

    async fn look(&self, branch: &BranchId) -> Result<Found, String> {
        match self.database.marker(branch, "").await {
            Ok(Some(marker)) if marker.committed => Ok(Found::Committed(marker.result)),
            Ok(Some(_)) => Ok(Found::Tombstone),
            Ok(None) => Ok(Found::Nothing),
            Err(refusal) => Err(refusal.message),
        }
    }
}

/// The step took no effect. Whether it may yet hangs on whose no it was.
fn undone(refusal: Refusal) -> StepOutcome {
    match refusal.code {
        AbortCode::Refused | AbortCode::InvalidOperation | AbortCode::BranchLost => {
            StepOutcome::Refused(refusal)
        }
        _ => StepOutcome::Failed(refusal),
    }
}

/// The key was not had. Where the step came before, an earlier one may have it just now.
fn unbegun(step: &Step, refusal: Refusal) -> StepOutcome {
    if step.age.is_zero() {
        StepOutcome::Failed(refusal)
    } else {
        StepOutcome::Unknown(refusal.message)
    }
}

/// What goes wrong with our own statements is never the request's fault.
fn ours(refusal: Refusal) -> Refusal {
    let code = match refusal.code {
        AbortCode::Refused | AbortCode::InvalidOperation | AbortCode::BranchLost => {
            AbortCode::ParticipantFailure
        }
        code => code,
    };
    Refusal { code, ..refusal }
}

fn failed_ours(failed: Failure) -> Failure {
    Failure {
        refusal: ours(failed.refusal),
        ..failed
    }
}
