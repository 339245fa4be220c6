//! A record as one line, for people.

use std::fmt;

use crate::{
    outcome::Resolution,
    record::{DecidedBranch, Decision, Heuristic, HeuristicKind, Record},
    saga::{DoneStep, Parent, SagaBegin, SagaRecord},
};

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epoch(epoch) => write!(f, "epoch {:x} begins", epoch.0),
            Self::Participant { name, one_phase } => {
                let phases = if *one_phase {
                    "one phase"
                } else {
                    "two phases"
                };
                write!(f, "participant {name} registers, for {phases}")
            }
            Self::Commit(decision) => write!(f, "commit {decision}"),
            Self::End {
                transaction,
                heuristics,
            } => {
                write!(f, "end {transaction}")?;
                list(f, heuristics)
            }
            Self::Resolve {
                branch,
                resolution,
                reason,
            } => {
                let made = match resolution {
                    Resolution::Committed => "committed",
                    Resolution::Aborted => "rolled back",
                };
                write!(f, "branch {branch} was {made} by hand: {reason}")
            }
            Self::CheckpointBegin { epoch, forgotten } => {
                write!(f, "checkpoint begins, epoch {:x}", epoch.0)?;
                match forgotten {
                    Some(id) => write!(f, ", commits before {id} may be forgotten"),
                    None => Ok(()),
                }
            }
            Self::CheckpointTransaction {
                decision,
                ended,
                heuristics,
            } => {
                let state = if *ended { "ended" } else { "commit" };
                write!(f, "checkpoint: {state} {decision}")?;
                list(f, heuristics)
            }
            Self::CheckpointEnd => f.write_str("checkpoint ends"),
            Self::Saga(record) => write!(f, "saga {record}"),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.transaction)?;
        if let Some(request) = &self.request_id {
            write!(f, ", request {}", request.as_str())?;
        }
        if let Some(Parent { saga, step }) = &self.parent {
            write!(f, ", step {} of saga {saga}", step + 1)?;
        }
        for branch in &self.branches {
            let DecidedBranch {
                number,
                participant,
                proof,
            } = branch;
            write!(f, ", branch {number} at {participant}")?;
            if !proof.is_empty() {
                write!(f, " (proof {proof})")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for SagaRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin(begin) => write!(f, "begins: {begin}"),
            Self::Step { transaction, step } => write!(f, "{transaction}: {step}"),
            Self::Turn {
                transaction,
                reason,
                unsettled,
            } => {
                write!(f, "{transaction} turns back: {}", reason.message)?;
                for position in unsettled {
                    write!(f, ", step {} unsettled", position + 1)?;
                }
                Ok(())
            }
            Self::Resolve { transaction, step } => write!(f, "{transaction}: {step}"),
            Self::End { transaction, .. } => write!(f, "{transaction} ends"),
            Self::Checkpoint {
                begin, turn, ended, ..
            } => {
                let state = match (ended, turn) {
                    (true, _) => "ended",
                    (false, Some(_)) => "on its way back",
                    (false, None) => "on its way forward",
                };
                write!(f, "in the checkpoint, {state}: {begin}")
            }
        }
    }
}

impl fmt::Display for SagaBegin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.transaction)?;
        if let Some(request) = &self.request_id {
            write!(f, ", request {}", request.as_str())?;
        }
        let names: Vec<_> = self.steps.iter().map(|step| step.name.as_str()).collect();
        write!(f, ", steps {}", names.join(" "))?;
        for key in &self.locks {
            write!(f, ", lock {}", key.as_str())?;
        }
        Ok(())
    }
}

impl fmt::Display for DoneStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.compensation { "undone" } else { "done" };
        write!(f, "step {} {what}", self.position + 1)?;
        if !self.resolution.is_empty() {
            write!(f, " by hand: {}", self.resolution)?;
        }
        Ok(())
    }
}

fn list(f: &mut fmt::Formatter<'_>, heuristics: &[Heuristic]) -> fmt::Result {
    for heuristic in heuristics {
        let what = match heuristic.kind {
            HeuristicKind::Aborted => "rolled back against the decision",
            HeuristicKind::Lost => "lost",
            HeuristicKind::ResolvedCommitted => "committed by hand",
            HeuristicKind::ResolvedAborted => "rolled back by hand, against the decision",
        };
        let Heuristic { branch, reason, .. } = heuristic;
        write!(f, ", branch {branch} {what}: {reason}")?;
    }
    Ok(())
}
