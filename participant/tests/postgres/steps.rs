//! A saga's steps on PostgreSQL.

use unanimity_participant::participant::{Participant, StepOutcome};
use unanimity_proto::v1::{self, AbortCode};
use unanimity_tests::postgres::Postgres;

use crate::{
    PgBank, connect,
    fixture::{
        Bank, change, look, sql,
        steps::{self, again, done, failed, refused, step},
    },
    run,
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

/// Takes 30 from `a`, over two seconds.
fn slow() -> v1::Operation {
    sql(
        "UPDATE account SET balance = balance - 30 WHERE id = 'a' AND pg_sleep(2) IS NOT NULL",
        &[],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn does_a_step_once_that_comes_twice_at_once() {
    let bank = PgBank::new().await;
    let other = connect(&bank.url).await.unwrap();
    steps::does_a_step_once_that_comes_twice_at_once(&bank, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compensation_waits_for_its_action_in_another_process() {
    let bank = PgBank::new().await;
    let other = connect(&bank.url).await.unwrap();
    steps::a_compensation_waits_for_its_action_in_another_process(&bank, other, slow()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_at_work_elsewhere_is_waited_for() {
    let bank = PgBank::new().await;
    let other = connect(&bank.url).await.unwrap();
    steps::what_is_at_work_elsewhere_is_waited_for(&bank, other, slow()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_too_large_to_keep_is_refused_before_the_commit() {
    let repeated = |length| format!("repeat('x', {length})");
    let bank = PgBank::new().await;
    steps::a_result_too_large_to_keep_is_refused_before_the_commit(&bank, repeated).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn undoes_a_step_whose_marker_was_purged() {
    let bank = PgBank::new().await;
    let old = "UPDATE unanimity_marker SET created_at = now() - interval '8 days'";
    steps::undoes_a_step_whose_marker_was_purged(&bank, async || run(&bank.url, old).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_forgets_no_step_and_does_none_twice() {
    let mut server = Postgres::start(&["max_prepared_transactions=10"]);
    let bank = PgBank::on(&server).await;
    let (kill, restart) = (Postgres::kill, Postgres::restart);
    steps::a_killed_server_forgets_no_step_and_does_none_twice(
        &bank,
        &mut server,
        kill,
        restart,
        slow(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_an_older_release_are_brought_up_to_date() {
    let bank = PgBank::new().await;
    let older = "ALTER TABLE unanimity_marker DROP COLUMN result; DROP TABLE unanimity_fence";
    run(&bank.url, older).await;
    steps::tables_of_an_older_release_are_brought_up_to_date(&bank, async || {
        connect(&bank.url).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_session_is_killed_at_its_commit_may_come_again() {
    let bank = PgBank::new().await;
    let trigger = "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER die AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die()";
    run(&bank.url, trigger).await;
    let debit = step(change("debit", "a", 30));
    for _ in 0..2 {
        let outcome = bank.resource.execute(again(&debit)).await;
        assert_eq!(failed(outcome), AbortCode::ParticipantUnavailable);
    }
    run(&bank.url, "DROP TRIGGER die ON account").await;
    assert_eq!(bank.resource.execute(again(&debit)).await, done(""));
    assert_eq!(bank.balance("a").await, 70);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_at_the_commit_is_the_step_s_own_no() {
    let bank = PgBank::new().await;
    let doubled = step(sql("UPDATE account SET alias = 1", &[]));
    for _ in 0..2 {
        let outcome = bank.resource.execute(doubled.clone()).await;
        assert_eq!(refused(outcome).0, AbortCode::Refused);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stricter_isolation_by_default_does_no_harm() {
    let bank = PgBank::new().await;
    for isolation in ["repeatable read", "serializable"] {
        let (_, database) = bank.url.rsplit_once('/').unwrap();
        let set =
            format!("ALTER DATABASE {database} SET default_transaction_isolation = '{isolation}'");
        run(&bank.url, &set).await;
        let strict = connect(&bank.url).await.unwrap();
        let debit = step(change("debit", "a", 1));
        assert_eq!(strict.execute(debit.clone()).await, done(""));
        let fenced = steps::fenced(7, change("debit", "a", 1));
        assert_eq!(strict.execute(fenced).await, done(""));
        let refund = steps::compensation(&debit, change("credit", "a", 2));
        let undone = strict.compensate(refund, steps::settled(&debit)).await;
        assert_eq!((undone, bank.balance("a").await), (done(""), 100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_statement_that_no_longer_fits_is_no_refusal() {
    let bank = PgBank::new().await;
    let looking = || steps::kept(look("a"));
    assert!(matches!(
        bank.resource.execute(looking()).await,
        StepOutcome::Done { .. }
    ));
    run(
        &bank.url,
        "ALTER TABLE account ALTER COLUMN balance TYPE integer",
    )
    .await;
    let next = looking();
    let outcome = bank.resource.execute(next.clone()).await;
    assert!(!matches!(outcome, StepOutcome::Refused(_)), "{outcome:?}");
    assert_eq!(
        steps::until_done(&bank.resource, &next).await,
        done(r#"{"affected_rows":0,"rows":[{"balance":100,"id":"a"}]}"#)
    );
}
