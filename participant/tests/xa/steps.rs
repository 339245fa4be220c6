//! A saga's steps on MySQL and MariaDB.

use unanimity_participant::{
    participant::{Participant, Settled, StepOutcome},
    resource::PreflightError,
};
use unanimity_proto::v1::{self, AbortCode};
use unanimity_tests::mariadb::Mariadb;

use super::{MyBank, connect, run};
use crate::{
    FLAVOUR,
    fixture::{
        Bank, branch, prepare_debit, sql,
        steps::{self, again, done, refused, step},
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

/// Takes 30 from `a`, over two seconds.
fn slow() -> v1::Operation {
    sql(
        "UPDATE account SET balance = balance - 30 WHERE id = 'a' AND SLEEP(2) = 0",
        &[],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn does_a_step_once_that_comes_twice_at_once() {
    if_installed!();
    let bank = MyBank::new().await;
    let other = connect(&bank.url).await.unwrap();
    steps::does_a_step_once_that_comes_twice_at_once(&bank, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compensation_waits_for_its_action_in_another_process() {
    if_installed!();
    let bank = MyBank::new().await;
    let other = connect(&bank.url).await.unwrap();
    steps::a_compensation_waits_for_its_action_in_another_process(&bank, other, slow()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_at_work_elsewhere_is_waited_for() {
    if_installed!();
    let bank = MyBank::new().await;
    let other = connect(&bank.url).await.unwrap();
    steps::what_is_at_work_elsewhere_is_waited_for(&bank, other, slow()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_too_large_to_keep_is_refused_before_the_commit() {
    if_installed!();
    let repeated = |length| format!("REPEAT('x', {length})");
    let bank = MyBank::new().await;
    steps::a_result_too_large_to_keep_is_refused_before_the_commit(&bank, repeated).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn undoes_a_step_whose_marker_was_purged() {
    if_installed!();
    let bank = MyBank::new().await;
    let old = "UPDATE unanimity_marker SET created_at = NOW() - INTERVAL 8 DAY";
    steps::undoes_a_step_whose_marker_was_purged(&bank, async || {
        run(&bank.url, old).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_forgets_no_step_and_does_none_twice() {
    if_installed!();
    let mut server = Mariadb::start(FLAVOUR, &[]);
    let bank = MyBank::on(&server).await;
    let (kill, restart) = (Mariadb::kill, Mariadb::restart);
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
    if_installed!();
    let bank = MyBank::new().await;
    let older = "ALTER TABLE unanimity_marker DROP COLUMN result; DROP TABLE unanimity_fence";
    run(&bank.url, older).await.unwrap();
    steps::tables_of_an_older_release_are_brought_up_to_date(&bank, async || {
        connect(&bank.url).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_table_is_not_changed_while_a_branch_that_wrote_to_it_is_prepared() {
    if_installed!();
    let bank = MyBank::new().await;
    let older = "ALTER TABLE unanimity_marker DROP COLUMN result";
    run(&bank.url, older).await.unwrap();
    let branch = branch();
    let proof = prepare_debit(&bank, &branch, 30).await;
    let Err(PreflightError::Unavailable(problem)) = connect(&bank.url).await else {
        panic!("changed")
    };
    assert!(problem.contains("ADD COLUMN result"), "{problem}");
    let settled = bank.resource.commit(&branch, &proof).await;
    assert_eq!(settled, Settled::Committed);
    assert!(connect(&bank.url).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_may_call_a_procedure_that_does_not_commit_on_its_own() {
    if_installed!();
    let bank = MyBank::new().await;
    let procedures =
        "CREATE PROCEDURE pay() UPDATE account SET balance = balance - 30 WHERE id = 'a'";
    run(&bank.url, procedures).await.unwrap();
    let sly = "CREATE PROCEDURE sly() BEGIN UPDATE account SET balance = 0; COMMIT; END";
    run(&bank.url, sly).await.unwrap();
    let (pay, sly) = (step(sql("CALL pay()", &[])), step(sql("CALL sly()", &[])));
    for _ in 0..2 {
        assert_eq!(bank.resource.execute(pay.clone()).await, done(""));
        let outcome = bank.resource.execute(sly.clone()).await;
        assert_eq!(refused(outcome).0, AbortCode::InvalidOperation);
    }
    let other = connect(&bank.url).await.unwrap();
    let both = step(sql("CALL pay()", &[]));
    let later = again(&both);
    let (one, two) = tokio::join!(bank.resource.execute(both), other.execute(later));
    for outcome in [one, two] {
        assert!(
            matches!(outcome, StepOutcome::Done { .. } | StepOutcome::Unknown(_)),
            "{outcome:?}"
        );
    }
    assert_eq!(bank.balance("a").await, 40);
}
