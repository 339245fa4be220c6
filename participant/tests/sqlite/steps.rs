//! A saga's steps on SQLite.

use std::time::Duration;

use unanimity_participant::participant::{Participant, Settled, Step, StepOutcome};
use unanimity_proto::v1::AbortCode;

use crate::{
    LiteBank,
    fixture::{
        Bank, branch, change, prepare_debit, sql,
        steps::{
            self, again, compensation, done, failed, fenced, kept, refused, settled, step,
            unsettled,
        },
    },
};

shared_behaviour!(steps =>
    does_a_step_once_with_one_result_however_often_it_comes,
    a_refused_step_leaves_nothing_and_may_come_again,
    a_compensation_undoes_once,
    an_empty_compensation_bars_the_late_step,
    settles_a_step_for_good,
    a_step_too_old_for_its_marker_is_neither_done_nor_denied,
    a_newer_holder_of_a_lock_bars_the_older,
);

#[tokio::test(flavor = "multi_thread")]
async fn does_a_step_once_that_comes_twice_at_once() {
    let bank = LiteBank::new().await;
    steps::does_a_step_once_that_comes_twice_at_once(&bank, bank.resource()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_too_large_to_keep_is_refused_before_the_commit() {
    let repeated = |length| format!("printf('%.*c', {length}, 'x')");
    let bank = LiteBank::new().await;
    steps::a_result_too_large_to_keep_is_refused_before_the_commit(&bank, repeated).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn undoes_a_step_whose_marker_was_purged() {
    let bank = LiteBank::new().await;
    let old = async || {
        bank.outside("UPDATE unanimity_marker SET created_at = created_at - 8 * 86400")
            .await
    };
    steps::undoes_a_step_whose_marker_was_purged(&bank, old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_forgets_no_step() {
    let mut bank = LiteBank::new().await;
    let (debit, never) = (
        kept(change("debit", "a", 30)),
        step(change("debit", "a", 1)),
    );
    let refund = compensation(&debit, change("credit", "a", 30));
    let result = done(r#"{"affected_rows":1}"#);
    assert_eq!(bank.resource().execute(debit.clone()).await, result);
    let holder = fenced(7, change("credit", "b", 1));
    assert_eq!(bank.resource().execute(holder).await, done(""));
    bank.resource().settle(&never.branch, Duration::ZERO).await;
    bank.crash().await;
    assert_eq!(bank.resource().execute(again(&debit)).await, result);
    assert_eq!(
        bank.resource().settle(&debit.branch, Duration::ZERO).await,
        result
    );
    let late = bank.resource().execute(never).await;
    assert_eq!(refused(late).0, AbortCode::BranchLost);
    let older = bank
        .resource()
        .execute(fenced(6, change("debit", "a", 1)))
        .await;
    assert_eq!(refused(older).0, AbortCode::BranchLost);
    for of in [unsettled(&debit), settled(&debit)] {
        assert_eq!(
            bank.resource().compensate(refund.clone(), of).await,
            done("")
        );
        bank.crash().await;
    }
    assert_eq!(bank.balance("a").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_waits_for_the_writer_and_is_interrupted_in_time() {
    let bank = LiteBank::new().await;
    let holder = branch();
    let proof = prepare_debit(&bank, &holder, 30).await;
    let hasty = Step {
        timeout: Duration::from_millis(200),
        ..step(change("debit", "a", 1))
    };
    assert_eq!(
        failed(bank.resource().execute(hasty.clone()).await),
        AbortCode::Timeout
    );
    let outcome = bank.resource().execute(again(&hasty)).await;
    assert!(matches!(outcome, StepOutcome::Unknown(_)), "{outcome:?}");
    assert_eq!(
        bank.resource().commit(&holder, &proof).await,
        Settled::Committed
    );
    let endless =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
    let slow = Step {
        operation: sql(endless, &[]),
        ..hasty.clone()
    };
    assert_eq!(
        failed(bank.resource().execute(slow).await),
        AbortCode::Timeout
    );
    assert_eq!(bank.resource().execute(again(&hasty)).await, done(""));
    assert_eq!(bank.balance("a").await, 69);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_leaves_nothing_and_the_step_may_come_again() {
    let bank = LiteBank::with(
        "CREATE TABLE owner (id INTEGER PRIMARY KEY, account REFERENCES account DEFERRABLE INITIALLY DEFERRED);",
    )
    .await;
    let orphan = step(sql("INSERT INTO owner VALUES (1, 'nobody')", &[]));
    for _ in 0..2 {
        let outcome = bank.resource().execute(orphan.clone()).await;
        assert_eq!(refused(outcome).0, AbortCode::Refused);
    }
    assert!(
        bank.rows("SELECT transaction_id FROM unanimity_marker")
            .await
            .is_empty()
    );
    let credit = sql("INSERT INTO account VALUES ('nobody', 0)", &[]);
    assert_eq!(bank.resource().execute(step(credit)).await, done(""));
    assert_eq!(bank.resource().execute(again(&orphan)).await, done(""));
}

/// What an agent of the release before left: a table without results, and a branch that it had prepared.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_an_older_release_are_brought_up_to_date_and_its_branch_is_kept() {
    let mut bank = LiteBank::new().await;
    bank.outside("ALTER TABLE unanimity_marker DROP COLUMN result; DROP TABLE unanimity_fence")
        .await;
    let prepared = branch();
    let proof = prepare_debit(&bank, &prepared, 30).await;
    bank.crash().await;
    assert_eq!(bank.in_doubt().await, [Some(prepared.clone())]);
    assert_eq!(
        bank.resource().commit(&prepared, &proof).await,
        Settled::Committed
    );
    assert_eq!(bank.balance("a").await, 70);
    let debit = kept(change("debit", "a", 30));
    let fenced = fenced(1, change("debit", "a", 1));
    assert_eq!(
        bank.resource().execute(debit).await,
        done(r#"{"affected_rows":1}"#)
    );
    assert_eq!(bank.resource().execute(fenced).await, done(""));
}
