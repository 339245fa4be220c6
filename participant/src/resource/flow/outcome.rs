//! A branch after its vote.

use crate::{
    participant::{BranchId, InDoubt, Settled, Unavailable, Vote},
    resource::{
        MARKER_COMMITTED, MARKER_PROOF, PURGE_BATCH,
        branches::{Standing, late_after_abort, late_after_commit},
        identifier::{check, marker_proves_absence},
    },
};

use super::{Flow, OutcomeRules};

impl<D: OutcomeRules> Flow<D> {
    /// See [`crate::participant::Participant::commit`].
    pub(crate) async fn commit(&self, branch: &BranchId, proof: &str) -> Settled {
        if let Err(refusal) = check(branch) {
            return Settled::Lost(refusal.message);
        }
        let _call = self.branches.call(branch).await;
        let mut bound = self.branches.prepared_connection(branch);
        failpoint!("participant.commit.before");
        let committing = self.database.commit_prepared(branch, proof, &mut bound);
        let settled = committing.await;
        failpoint!("participant.commit.after");
        match (&settled, bound) {
            (Settled::Committed, _) => self.branches.ended(branch, late_after_commit(branch)),
            (Settled::Aborted | Settled::Lost(_), _) => {
                self.branches.ended(branch, late_after_abort(branch));
            }
            (Settled::Retry(_), Some(bound)) => self.branches.keep_connection(branch, bound),
            (Settled::Retry(_), None) => {}
        }
        settled
    }

    /// See [`crate::participant::Participant::abort`].
    pub(crate) async fn abort(&self, branch: &BranchId, proof: &str) -> Settled {
        if check(branch).is_err() {
            // Nothing of that name can ever have been prepared.
            return Settled::Aborted;
        }
        let _call = self.branches.call(branch).await;
        match self.branches.standing(branch) {
            Standing::Open(lease) => {
                let connection = lease.end(late_after_abort(branch));
                self.database.undo(connection, false).await;
                return Settled::Aborted;
            }
            Standing::InUse(interrupt) => {
                self.branches.ended(branch, late_after_abort(branch));
                self.database.stop(interrupt).await;
                return Settled::Aborted;
            }
            Standing::Absent | Standing::Voted(_) => {}
        }
        let mut bound = self.branches.prepared_connection(branch);
        failpoint!("participant.abort.before");
        let aborting = self.database.abort_prepared(branch, proof, &mut bound);
        let settled = aborting.await;
        failpoint!("participant.abort.after");
        match (&settled, bound) {
            // The connection that a prepared branch is bound to must stay in the table until the branch is over.
            (Settled::Retry(_), Some(bound)) => self.branches.keep_connection(branch, bound),
            (Settled::Committed, _) => self.branches.ended(branch, late_after_commit(branch)),
            _ if cfg!(unanimity_bug = "late-prepare-accepted") => {}
            _ => self.branches.ended(branch, late_after_abort(branch)),
        }
        settled
    }

    /// See [`crate::participant::Participant::prove`].
    pub(crate) async fn prove(&self, branch: &BranchId) -> Settled {
        if check(branch).is_err() {
            return Settled::Aborted;
        }
        let _call = self.branches.call(branch).await;
        let settled = if marker_proves_absence(branch, self.retention) {
            self.database.prove(branch).await
        } else {
            self.prove_past_retention(branch).await
        };
        failpoint!("participant.prove.after");
        match &settled {
            Settled::Committed => self.branches.ended(branch, Vote::Committed),
            Settled::Aborted => self.branches.ended(branch, late_after_abort(branch)),
            Settled::Lost(_) | Settled::Retry(_) => {}
        }
        settled
    }

    /// Of a branch so old that its marker may have been purged, a missing one proves nothing. No tombstone may then be written.
    async fn prove_past_retention(&self, branch: &BranchId) -> Settled {
        match self.database.marker(branch, "").await {
            Ok(Some(marker)) if marker.committed => Settled::Committed,
            Ok(Some(_)) => Settled::Aborted,
            Ok(None) => Settled::Retry(format!(
                "branch {branch} is so old that its marker, if it had one, may have been purged"
            )),
            Err(refusal) => Settled::Retry(refusal.message),
        }
    }

    /// See [`crate::participant::Participant::in_doubt`].
    pub(crate) async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        self.database.in_doubt(&self.branches).await
    }

    /// See [`crate::resource::Resource::purge`].
    pub(crate) async fn purge(&self) -> Result<u64, Unavailable> {
        let mut purged = 0;
        loop {
            let batch = self.database.purge_batch().await?;
            purged += batch;
            if batch < PURGE_BATCH {
                return Ok(purged);
            }
        }
    }
}

/// What became of a branch that is not prepared, by the marker row that it would have written.
pub(crate) fn settled_by_marker(branch: &BranchId, marker: Option<i32>, proof: &str) -> Settled {
    match marker {
        Some(MARKER_COMMITTED) => Settled::Committed,
        Some(_) => Settled::Aborted,
        None if proof == MARKER_PROOF => Settled::Lost(format!(
            "branch {branch} is not prepared, and its marker, if it had one, may have been purged"
        )),
        None => Settled::Lost(format!(
            "branch {branch} is not prepared, and the vote carried no proof"
        )),
    }
}
