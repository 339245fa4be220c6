//! The resource manager for MySQL and MariaDB, on private real servers of the flavour that the test binary names.

use std::time::Duration;

use crate::{FLAVOUR, fixture};
use fixture::{
    Bank, branch, change, code, continued, one_phase, prepare, prepare_debit, sql, until_settled,
};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection};
use unanimity_participant::{
    participant::{BranchId, Participant, Prepare, Settled, Vote},
    resource::{MysqlResource, PreflightError, Resource},
};
use unanimity_proto::v1::AbortCode;
use unanimity_tests::mariadb::{Flavour, Mariadb};

/// MySQL is tested where a `mysqld` of its own is found; Debian has none.
macro_rules! if_installed {
    () => {
        if Mariadb::shared_of(FLAVOUR).is_none() {
            eprintln!("{FLAVOUR:?} is not installed: nothing was tested");
            return;
        }
    };
}

fn server() -> &'static Mariadb {
    Mariadb::shared_of(FLAVOUR).unwrap()
}

struct MyBank {
    resource: Resource,
    url: String,
}

impl Bank for MyBank {
    fn resource(&self) -> &Resource {
        &self.resource
    }

    async fn balance(&self, account: &str) -> i64 {
        let mut connection = MySqlConnection::connect(&self.url).await.unwrap();
        sqlx::query_scalar("SELECT balance FROM account WHERE id = ?")
            .bind(account)
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }
}

impl MyBank {
    async fn new() -> Self {
        Self::on(server()).await
    }

    async fn on(server: &Mariadb) -> Self {
        let url = server.new_database().await;
        let script = "CREATE TABLE account (id VARCHAR(20) COLLATE utf8mb4_bin PRIMARY KEY, balance BIGINT NOT NULL, \
             CHECK (balance >= 0)); INSERT INTO account VALUES ('a', 100), ('b', 50)";
        run(&url, script).await.unwrap();
        Self {
            resource: connect(&url).await.unwrap(),
            url,
        }
    }

    fn mysql(&self) -> &MysqlResource {
        let Resource::Mysql(mysql) = &self.resource else {
            unreachable!()
        };
        mysql
    }

    /// In doubt on this server are other tests' branches too.
    async fn lists(&self, branch: &BranchId) -> bool {
        let found = self.resource.in_doubt().await.unwrap();
        found
            .iter()
            .any(|found| found.branch.as_ref() == Some(branch))
    }
}

async fn connect(url: &str) -> Result<Resource, PreflightError> {
    Resource::connect(fixture::options(
        url.into(),
        fixture::catalog(|_| "?".into()),
    ))
    .await
}

async fn run(url: &str, script: &str) -> Result<(), sqlx::Error> {
    let mut connection = MySqlConnection::connect(url).await?;
    sqlx::raw_sql(AssertSqlSafe(script.to_owned()))
        .execute(&mut connection)
        .await?;
    connection.close().await
}

fn xid(branch: &BranchId) -> String {
    format!("'{}','{}',{}", branch.transaction, branch.number, 0x554E)
}

macro_rules! shared_behaviour {
    ($module:ident => $($name:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            if_installed!();
            $module::$name(&MyBank::new().await).await;
        })*
    };
}

mod steps;

shared_behaviour!(fixture =>
    commits_what_it_prepared_once_however_often_it_is_told,
    aborts_what_it_prepared,
    votes_read_only_where_nothing_was_changed,
    leaves_nothing_behind_when_it_refuses,
    refuses_a_prepare_that_comes_after_the_abort,
    answers_lost_where_nothing_proves_the_outcome,
    runs_an_interactive_branch_to_its_end,
    rolls_an_interactive_branch_back,
    commits_a_request_id_once_in_one_phase,
);

#[tokio::test(flavor = "multi_thread")]
async fn fences_a_one_phase_commit_that_comes_after_the_proof() {
    if_installed!();
    let bank = MyBank::new().await;
    fixture::fences_a_one_phase_commit_that_comes_after_the_proof(&bank, async || {
        connect(&bank.url).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_only_young_markers() {
    if_installed!();
    let bank = MyBank::new().await;
    let old = async || {
        run(
            &bank.url,
            "UPDATE unanimity_marker SET created_at = NOW() - INTERVAL 8 DAY",
        )
        .await
        .unwrap()
    };
    fixture::keeps_only_young_markers(&bank, old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finishes_on_the_connection_that_mariadb_binds_to_the_branch() {
    if FLAVOUR == Flavour::Mysql {
        return; // It binds nothing.
    }
    let bank = MyBank::new().await;
    let branch = branch();
    let proof = prepare_debit(&bank, &branch, 30).await;
    // No other session can, while ours is connected; neither can another agent, and it says so.
    let refused = run(&bank.url, &format!("XA COMMIT {}", xid(&branch)))
        .await
        .unwrap_err();
    assert_eq!(
        refused.as_database_error().unwrap().code().unwrap(),
        "XAE04"
    );
    let other = connect(&bank.url).await.unwrap();
    assert!(matches!(
        other.commit(&branch, &proof).await,
        Settled::Retry(_)
    ));
    assert_eq!(
        bank.resource.commit(&branch, &proof).await,
        Settled::Committed
    );
    assert_eq!(other.commit(&branch, &proof).await, Settled::Committed);
    assert_eq!(bank.balance("a").await, 70);
}

#[tokio::test(flavor = "multi_thread")]
async fn finishes_on_another_connection_when_the_bound_one_is_lost() {
    if FLAVOUR == Flavour::Mysql {
        return; // It binds nothing.
    }
    let bank = MyBank::new().await;
    for commit in [true, false] {
        let branch = branch();
        let proof = prepare_debit(&bank, &branch, 30).await;
        let database = bank.url.rsplit_once('/').unwrap().1;
        let mut connection = MySqlConnection::connect(&bank.url).await.unwrap();
        let query =
            "SELECT id FROM information_schema.processlist WHERE db = ? AND id <> CONNECTION_ID()";
        let sessions: Vec<i64> = sqlx::query_scalar(query)
            .bind(database)
            .fetch_all(&mut connection)
            .await
            .unwrap();
        for session in sessions {
            let _ = sqlx::raw_sql(AssertSqlSafe(format!("KILL {session}")))
                .execute(&mut connection)
                .await;
        }
        if commit {
            assert_eq!(
                bank.resource.commit(&branch, &proof).await,
                Settled::Committed
            );
        } else {
            assert_eq!(bank.resource.abort(&branch, &proof).await, Settled::Aborted);
        }
        assert_eq!(bank.balance("a").await, 70);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tells_a_rollback_by_hand_from_a_commit_by_hand() {
    if_installed!();
    let bank = MyBank::new().await;
    for (command, expected) in [
        ("XA ROLLBACK", Settled::Aborted),
        ("XA COMMIT", Settled::Committed),
    ] {
        let branch = branch();
        let proof = {
            let gone = connect(&bank.url).await.unwrap();
            let vote = gone
                .prepare(prepare(&branch, vec![change("debit", "a", 1)]))
                .await;
            let Vote::Yes { proof } = vote else {
                panic!("{vote:?}")
            };
            proof
        };
        let mut tries = 0;
        while run(&bank.url, &format!("{command} {}", xid(&branch)))
            .await
            .is_err()
        {
            tries += 1;
            assert!(tries < 100);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(bank.resource.commit(&branch, &proof).await, expected);
        assert_eq!(bank.resource.commit(&branch, &proof).await, expected);
        assert_eq!(bank.resource.abort(&branch, &proof).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_lost_for_a_branch_older_than_its_marker_would_be() {
    if_installed!();
    let bank = MyBank::new().await;
    let old = BranchId {
        transaction: "u1.0a1b2c3d.1.0190a1b2c3d47abc8def0123456789ab".into(),
        number: 1,
    };
    assert!(matches!(
        bank.resource.commit(&old, "marker").await,
        Settled::Lost(_)
    ));
}

async fn survives_a_killed_server(settings: &[&str]) {
    let mut server = Mariadb::start(FLAVOUR, settings);
    let bank = MyBank::on(&server).await;
    let (decided, undecided) = (branch(), branch());
    let proof = prepare_debit(&bank, &decided, 30).await;
    let vote = bank
        .resource
        .prepare(prepare(&undecided, vec![change("credit", "b", 1)]))
        .await;
    assert!(matches!(vote, Vote::Yes { .. }));
    server.kill();
    assert!(matches!(
        bank.resource.commit(&decided, &proof).await,
        Settled::Retry(_)
    ));
    assert!(bank.resource.in_doubt().await.is_err());
    server.restart();
    assert_eq!(
        until_settled(|| bank.resource.commit(&decided, &proof)).await,
        Settled::Committed
    );
    assert_eq!(bank.balance("a").await, 70);
    let other = connect(&bank.url).await.unwrap();
    let found = other.in_doubt().await.unwrap();
    assert_eq!(
        found
            .iter()
            .map(|found| found.branch.clone())
            .collect::<Vec<_>>(),
        [Some(undecided.clone())]
    );
    assert_eq!(other.abort(&undecided, "").await, Settled::Aborted);
    assert_eq!(bank.balance("b").await, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_after_the_server_was_killed_with_the_branch_prepared() {
    if_installed!();
    survives_a_killed_server(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_after_the_server_was_killed_with_the_branch_prepared_and_a_binary_log() {
    if_installed!();
    survives_a_killed_server(&["--log-bin=binlog", "--sync-binlog=1", "--server-id=1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_a_change_behind_a_select_as_a_change() {
    if_installed!();
    let bank = MyBank::new().await;
    let function = "CREATE FUNCTION take(amount BIGINT) RETURNS BIGINT DETERMINISTIC MODIFIES SQL DATA \
         BEGIN UPDATE account SET balance = balance - amount WHERE id = 'a'; RETURN amount; END";
    run(&bank.url, function).await.unwrap();
    let (branch, opened) = (branch(), branch());
    let vote = bank
        .resource
        .prepare(prepare(&branch, vec![sql("SELECT take(30)", &[])]))
        .await;
    assert!(matches!(vote, Vote::Yes { .. }), "{vote:?}");
    assert_eq!(
        bank.resource.abort(&branch, "marker").await,
        Settled::Aborted
    );
    bank.resource
        .operate(
            &opened,
            true,
            sql("SELECT take(30)", &[]),
            Duration::from_secs(5),
        )
        .await
        .unwrap();
    let vote = bank.resource.prepare(continued(&opened)).await;
    assert!(matches!(vote, Vote::Yes { .. }), "{vote:?}");
    assert_eq!(
        bank.resource.abort(&opened, "marker").await,
        Settled::Aborted
    );
    assert_eq!(bank.balance("a").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn lets_no_procedure_commit_on_its_own() {
    if_installed!();
    let bank = MyBank::new().await;
    let procedure = "CREATE PROCEDURE sly() BEGIN UPDATE account SET balance = 0; COMMIT; END";
    run(&bank.url, procedure).await.unwrap();
    for one_phase in [true, false] {
        let prepare = Prepare {
            one_phase,
            ..prepare(&branch(), vec![sql("CALL sly()", &[])])
        };
        assert_eq!(
            code(&bank.resource.prepare(prepare).await),
            AbortCode::InvalidOperation
        );
    }
    assert_eq!(bank.balance("a").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_what_can_not_vote_and_says_what_to_do() {
    if_installed!();
    let mut server = Mariadb::start(FLAVOUR, &["--innodb-flush-log-at-trx-commit=2"]);
    let refusal = async |url: &str| match connect(url).await {
        Err(PreflightError::Refused { problem, remedy }) => format!("{problem} / {remedy}"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("accepted"),
    };
    assert!(
        refusal(&server.url("mysql"))
            .await
            .contains("SET GLOBAL innodb_flush_log_at_trx_commit = 1")
    );
    assert!(refusal(&server.url("")).await.contains("names no database"));
    assert!(refusal(&server.url("nowhere")).await.contains("create it"));
    run(&server.url("mysql"), "SET GLOBAL innodb_flush_log_at_trx_commit = 1; CREATE DATABASE bank; CREATE DATABASE locked").await.unwrap();
    run(
        &server.url("bank"),
        "CREATE TABLE old (a INT) ENGINE=MyISAM; CREATE TABLE fast (a INT) ENGINE=MEMORY",
    )
    .await
    .unwrap();
    assert!(
        refusal(&server.url("bank"))
            .await
            .contains("can't roll back: fast (MEMORY), old (MyISAM)")
    );
    run(
        &server.url("mysql"),
        "CREATE USER plain@'%' IDENTIFIED BY 'secret'; GRANT SELECT ON locked.* TO plain@'%'",
    )
    .await
    .unwrap();
    if FLAVOUR == Flavour::Mysql {
        let text = refusal(&server.url_as("plain:secret", "locked")).await;
        assert!(text.contains("GRANT XA_RECOVER_ADMIN"), "{text}");
        run(
            &server.url("mysql"),
            "GRANT XA_RECOVER_ADMIN ON *.* TO plain@'%'",
        )
        .await
        .unwrap();
    }
    let text = refusal(&server.url_as("plain:secret", "locked")).await;
    assert!(
        text.contains("grant SELECT, INSERT, UPDATE, DELETE"),
        "{text}"
    );
    let text = refusal(&server.url_as("plain:wrongsecret", "locked")).await;
    assert!(
        text.contains("refuses the login") && !text.contains("wrongsecret"),
        "{text}"
    );
    server.kill();
    assert!(matches!(
        connect(&server.url("locked")).await,
        Err(PreflightError::Unavailable(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn gives_up_in_time_behind_a_lock_and_holds_none_afterwards() {
    if_installed!();
    let bank = MyBank::new().await;
    let holder = branch();
    let proof = prepare_debit(&bank, &holder, 30).await;
    for operation in [change("debit", "a", 1), sql("SELECT SLEEP(60)", &[])] {
        let late = Prepare {
            timeout: Duration::from_millis(300),
            ..prepare(&branch(), vec![change("credit", "b", 1), operation])
        };
        assert_eq!(code(&bank.resource.prepare(late).await), AbortCode::Timeout);
    }
    let slow = Prepare {
        timeout: Duration::from_millis(1500),
        ..prepare(&branch(), vec![change("debit", "a", 1)])
    };
    assert_eq!(code(&bank.resource.prepare(slow).await), AbortCode::Timeout);
    assert_eq!(
        bank.resource.commit(&holder, &proof).await,
        Settled::Committed
    );
    let vote = bank
        .resource
        .prepare(prepare(&branch(), vec![change("credit", "b", 1)]))
        .await;
    assert!(matches!(vote, Vote::Yes { .. }), "{vote:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_told_as_such_and_leaves_nothing() {
    if_installed!();
    let bank = MyBank::new().await;
    let limit = Duration::from_secs(10);
    let (one, two) = (branch(), branch());
    bank.resource
        .operate(&one, true, change("credit", "a", 1), limit)
        .await
        .unwrap();
    bank.resource
        .operate(&two, true, change("credit", "b", 1), limit)
        .await
        .unwrap();
    let (first, second) = tokio::join!(
        bank.resource
            .operate(&one, false, change("credit", "b", 1), limit),
        bank.resource
            .operate(&two, false, change("credit", "a", 1), limit),
    );
    let winner = if first.is_ok() { &one } else { &two };
    let refusals: Vec<_> = [first, second]
        .into_iter()
        .filter_map(Result::err)
        .collect();
    assert_eq!(
        refusals
            .iter()
            .map(|refusal| refusal.code)
            .collect::<Vec<_>>(),
        [AbortCode::Conflict]
    );
    let Vote::Yes { proof, .. } = bank.resource.prepare(continued(winner)).await else {
        panic!("no")
    };
    assert_eq!(
        bank.resource.commit(winner, &proof).await,
        Settled::Committed
    );
    assert_eq!(
        (bank.balance("a").await, bank.balance("b").await),
        (101, 51)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn prepares_what_a_service_did_on_the_connection_itself() {
    if_installed!();
    let bank = MyBank::new().await;
    let (branch, limit) = (branch(), Duration::from_secs(5));
    for account in ["a", "b"] {
        let mut open = bank.mysql().open(&branch, limit).await.unwrap();
        let query = sqlx::query("UPDATE account SET balance = balance + 1 WHERE id = ?");
        query
            .bind(account)
            .execute(open.connection())
            .await
            .unwrap();
        open.finish().unwrap();
    }
    let Vote::Yes { proof, .. } = bank.resource.prepare(continued(&branch)).await else {
        panic!("no")
    };
    assert_eq!(
        bank.resource.commit(&branch, &proof).await,
        Settled::Committed
    );
    assert_eq!(
        (bank.balance("a").await, bank.balance("b").await),
        (101, 51)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn votes_no_for_a_branch_that_its_service_dropped_or_still_holds() {
    if_installed!();
    let bank = MyBank::new().await;
    let limit = Duration::from_secs(5);
    let (dropped, held) = (branch(), branch());
    let mut open = bank.mysql().open(&dropped, limit).await.unwrap();
    sqlx::query("UPDATE account SET balance = 0")
        .execute(open.connection())
        .await
        .unwrap();
    drop(open);
    assert_eq!(
        code(&bank.resource.prepare(continued(&dropped)).await),
        AbortCode::BranchLost
    );

    let mut open = bank.mysql().open(&held, limit).await.unwrap();
    sqlx::query("UPDATE account SET balance = 0")
        .execute(open.connection())
        .await
        .unwrap();
    assert_eq!(bank.resource.abort(&held, "").await, Settled::Aborted);
    assert!(
        sqlx::query("SELECT 1")
            .execute(open.connection())
            .await
            .is_err(),
        "its session was killed"
    );
    assert_eq!(open.finish().unwrap_err().code, AbortCode::BranchLost);
    assert_eq!(bank.balance("a").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_of_prepared_branches_still_takes_decisions_and_questions() {
    if_installed!();
    let bank = MyBank::new().await;
    // MariaDB keeps a connection for each prepared branch, so two are kept back.
    let capacity = match FLAVOUR {
        Flavour::Mariadb => 6,
        Flavour::Mysql => 8,
    };
    assert_eq!(bank.resource.capacity(), capacity);
    run(
        &bank.url,
        "INSERT INTO account VALUES ('n1', 1), ('n2', 1), ('n3', 1), ('n4', 1), ('n5', 1), ('n6', 1), ('n7', 1), ('n8', 1)",
    )
    .await
    .unwrap();
    let mut held = Vec::new();
    for account in 1..=capacity {
        let branch = branch();
        let vote = bank
            .resource
            .prepare(prepare(
                &branch,
                vec![change("debit", &format!("n{account}"), 1)],
            ))
            .await;
        assert!(matches!(vote, Vote::Yes { .. }), "{vote:?}");
        held.push(branch);
    }
    for branch in &held {
        assert!(bank.lists(branch).await);
        assert_eq!(
            bank.resource.commit(branch, "marker").await,
            Settled::Committed
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_prepared_by_a_process_that_is_gone_stands_when_its_prepare_comes_again() {
    if_installed!();
    let bank = MyBank::new().await;
    let branch = branch();
    {
        let gone = connect(&bank.url).await.unwrap();
        let vote = gone
            .prepare(prepare(&branch, vec![change("debit", "a", 30)]))
            .await;
        assert!(matches!(vote, Vote::Yes { .. }));
    }
    let vote = bank
        .resource
        .prepare(prepare(&branch, vec![change("debit", "a", 30)]))
        .await;
    let Vote::Yes { proof, .. } = vote else {
        panic!("{vote:?}")
    };
    assert_eq!(
        until_settled(|| bank.resource.commit(&branch, &proof)).await,
        Settled::Committed
    );
    assert_eq!(bank.balance("a").await, 70);
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_in_one_phase_twice_at_the_same_time_but_once() {
    if_installed!();
    let bank = MyBank::new().await;
    let debit = || vec![change("debit", "a", 30)];
    let (one, two) = (branch(), branch());
    let (first, second) = tokio::join!(
        bank.resource.prepare(one_phase(&one, "r", debit())),
        bank.resource.prepare(one_phase(&two, "r", debit()))
    );
    let committed = [&first, &second]
        .into_iter()
        .filter(|vote| **vote == Vote::Committed)
        .count();
    let duplicates = [&first, &second]
        .into_iter()
        .filter(|vote| matches!(vote, Vote::Duplicate { .. }))
        .count();
    assert_eq!((committed, duplicates), (1, 1), "{first:?} {second:?}");
    assert_eq!(bank.balance("a").await, 70);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_with_their_values() {
    if_installed!();
    let bank = MyBank::new().await;
    assert!(
        bank.resource.identity().starts_with("mysql:"),
        "{}",
        server().url("")
    );
    let query = "SELECT 7, CAST(2.5 AS DOUBLE), CAST('12.340' AS DECIMAL(10,3)), NULL, id, X'01FF', DATE '2024-02-29', \
         TIMESTAMP '2024-02-29 12:34:56.5', CAST(18446744073709551615 AS UNSIGNED), ? FROM account WHERE id = 'a'";
    let result = bank
        .resource
        .operate(
            &branch(),
            true,
            sql(query, &[fixture::text("y")]),
            Duration::from_secs(5),
        )
        .await
        .unwrap();
    let shown: Vec<String> = result.rows[0]
        .values
        .iter()
        .map(|value| format!("{:?}", value.kind.clone().unwrap()))
        .collect();
    let expected = [
        "Integer(7)",
        "Float(2.5)",
        "Text(\"12.340\")",
        "Null(true)",
        "Text(\"a\")",
        "Bytes([1, 255])",
        "Text(\"2024-02-29\")",
        "Text(\"2024-02-29 12:34:56.5\")",
        "Text(\"18446744073709551615\")",
        "Text(\"y\")",
    ];
    assert_eq!(shown, expected);
    let short = bank
        .resource
        .operate(
            &branch(),
            true,
            sql("SELECT ?, ?", &[fixture::text("y")]),
            Duration::from_secs(5),
        )
        .await;
    assert_eq!(short.unwrap_err().code, AbortCode::InvalidOperation);
}
