//! What a saga's steps need of PostgreSQL besides.

use sqlx::{Row, postgres::PgRow};
use tokio::time::Instant;
use unanimity_proto::v1::AbortCode;

use crate::{
    participant::{BranchId, Settled},
    resource::{
        FENCE_TABLE, Failure, MARKER_COMMITTED, MARKER_TABLE, MARKER_TOMBSTONE,
        flow::{BranchRules, StepRules, Undone},
        refusal,
    },
};

use super::{
    PostgresServer,
    branch::{PgBranch, literal},
};

/// What [`StepRules::contest`] reads where the tombstone is its own.
const OWN_TOMBSTONE: i32 = 0;

impl StepRules for PostgresServer {
    /// The row is written only where the token is new, and else locked for sharing, so that a saga's steps need not wait for each other. The
    /// first look takes no lock: to share one and then want it alone is how two wait for each other for ever.
    async fn raise(
        &self,
        opened: &mut PgBranch,
        key: &str,
        token: i64,
        deadline: Instant,
    ) -> Result<i64, Failure> {
        let key = literal(key);
        let script = format!(
            "INSERT INTO {FENCE_TABLE} (lock_key, token) SELECT {key}, {token} \
             WHERE NOT EXISTS (SELECT FROM {FENCE_TABLE} WHERE lock_key = {key} AND token >= {token}) \
             ON CONFLICT (lock_key) DO UPDATE SET token = EXCLUDED.token WHERE {FENCE_TABLE}.token < EXCLUDED.token; \
             SELECT token::text FROM {FENCE_TABLE} WHERE lock_key = {key} FOR SHARE"
        );
        let rows = opened.script("fence", script, deadline).await?;
        rows.first()
            .and_then(number)
            .ok_or_else(|| unreadable("the fence"))
    }

    async fn contest(
        &self,
        opened: &mut PgBranch,
        action: &BranchId,
        deadline: Instant,
    ) -> Result<Undone, Failure> {
        let (transaction, branch) = (&action.transaction, action.number);
        let script = format!(
            "INSERT INTO {MARKER_TABLE} (transaction_id, branch, outcome) VALUES ('{transaction}', {branch}, {MARKER_TOMBSTONE}) \
             ON CONFLICT (transaction_id, branch) DO NOTHING RETURNING {OWN_TOMBSTONE}::text; \
             SELECT outcome::text FROM {MARKER_TABLE} WHERE transaction_id = '{transaction}' AND branch = {branch}"
        );
        let rows = opened
            .script("the action's marker", script, deadline)
            .await?;
        match rows.first().and_then(number) {
            Some(OWN_TOMBSTONE) => Ok(Undone::Absent),
            Some(MARKER_COMMITTED) => Ok(Undone::Committed),
            Some(MARKER_TOMBSTONE) => Ok(Undone::Tombstone),
            _ => Err(unreadable("the action's marker")),
        }
    }

    async fn keep(
        &self,
        opened: &mut PgBranch,
        branch: &BranchId,
        result: &str,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let script = format!(
            "UPDATE {MARKER_TABLE} SET result = {} WHERE transaction_id = '{}' AND branch = {} RETURNING 1",
            literal(result),
            branch.transaction,
            branch.number
        );
        let rows = opened.script("the result", script, deadline).await?;
        (rows.len() == 1)
            .then_some(())
            .ok_or_else(|| unreadable("the marker"))
    }

    async fn find_out(&self, branch: &BranchId, left: &mut Option<PgBranch>) -> Settled {
        if let Some(connection) = left.take() {
            self.undo(connection, true).await;
        }
        self.compete(branch, false).await
    }
}

fn number<T: std::str::FromStr>(row: &PgRow) -> Option<T> {
    row.try_get::<&str, _>(0).ok()?.parse().ok()
}

fn unreadable(what: &str) -> Failure {
    refusal(
        AbortCode::ParticipantFailure,
        format!("{what} can't be read"),
    )
    .into()
}
