//! What a saga's steps need of MySQL or MariaDB besides.

use tokio::time::Instant;
use unanimity_proto::v1::AbortCode;

use crate::{
    participant::{BranchId, Settled},
    resource::{
        FENCE_TABLE, Failure, MARKER_COMMITTED, MARKER_TABLE, MARKER_TOMBSTONE,
        flow::{BranchRules, StepRules, Undone},
        identifier::hex,
        refusal,
    },
};

use super::{MysqlServer, branch::MyBranch, preflight::text};

impl StepRules for MysqlServer {
    /// The row is written only where the token is new, and else locked for sharing, so that a saga's steps need not wait for each other. The
    /// first look takes no lock: to share one and then want it alone is how two wait for each other for ever.
    async fn raise(
        &self,
        opened: &mut MyBranch,
        key: &str,
        token: i64,
        deadline: Instant,
    ) -> Result<i64, Failure> {
        let key = hex(key.as_bytes());
        let look = format!("SELECT token FROM {FENCE_TABLE} WHERE lock_key = X'{key}'");
        let share = format!("{look} LOCK IN SHARE MODE");
        let seen = opened.script("fence", look, deadline).await?;
        let script = if seen.first().map(|row| text(row, 0)) == Some(token.to_string()) {
            share
        } else {
            format!(
                "INSERT INTO {FENCE_TABLE} (lock_key, token) VALUES (X'{key}', {token}) \
                 ON DUPLICATE KEY UPDATE token = GREATEST(token, {token}); {share}"
            )
        };
        let rows = opened.script("fence", script, deadline).await?;
        let stands = rows.first().and_then(|row| text(row, 0).parse().ok());
        stands.ok_or_else(|| unreadable("the fence"))
    }

    /// The locking read sees what stands there now, whatever the transaction has read before.
    async fn contest(
        &self,
        opened: &mut MyBranch,
        action: &BranchId,
        deadline: Instant,
    ) -> Result<Undone, Failure> {
        let (transaction, branch) = (hex(action.transaction.as_bytes()), action.number);
        let script = format!(
            "INSERT IGNORE INTO {MARKER_TABLE} (transaction_id, branch, outcome) VALUES (X'{transaction}', {branch}, {MARKER_TOMBSTONE}); \
             SELECT ROW_COUNT(), outcome FROM {MARKER_TABLE} WHERE transaction_id = X'{transaction}' AND branch = {branch} LOCK IN SHARE MODE"
        );
        let rows = opened
            .script("the action's marker", script, deadline)
            .await?;
        let found = rows.first().map(|row| (text(row, 0), text(row, 1).parse()));
        match found
            .as_ref()
            .map(|(written, outcome)| (written.as_str(), outcome))
        {
            Some(("1", Ok(MARKER_TOMBSTONE))) => Ok(Undone::Absent),
            Some((_, Ok(MARKER_COMMITTED))) => Ok(Undone::Committed),
            Some((_, Ok(MARKER_TOMBSTONE))) => Ok(Undone::Tombstone),
            _ => Err(unreadable("the action's marker")),
        }
    }

    async fn keep(
        &self,
        opened: &mut MyBranch,
        branch: &BranchId,
        result: &str,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let script = format!(
            "UPDATE {MARKER_TABLE} SET result = X'{}' WHERE transaction_id = X'{}' AND branch = {}; SELECT ROW_COUNT()",
            hex(result.as_bytes()),
            hex(branch.transaction.as_bytes()),
            branch.number
        );
        let rows = opened.script("the result", script, deadline).await?;
        let written = rows.first().map(|row| text(row, 0));
        (written.as_deref() == Some("1"))
            .then_some(())
            .ok_or_else(|| unreadable("the marker"))
    }

    /// The transaction held the marker before its COMMIT. So where a read that waits for it finds none, it was rolled back.
    async fn find_out(&self, branch: &BranchId, left: &mut Option<MyBranch>) -> Settled {
        if let Some(connection) = left.take() {
            self.undo(connection, true).await;
        }
        match self.own_marker(branch).await {
            Ok(Some(MARKER_COMMITTED)) => Settled::Committed,
            Ok(_) => Settled::Aborted,
            Err(problem) => Settled::Retry(problem),
        }
    }
}

fn unreadable(what: &str) -> Failure {
    refusal(
        AbortCode::ParticipantFailure,
        format!("{what} can't be read"),
    )
    .into()
}
