//! The resource manager for PostgreSQL, on private real servers.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod fixture;

use std::time::Duration;

use fixture::{
    Bank, branch, change, code, continued, one_phase, prepare, prepare_debit, sql, until_settled,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use unanimity_participant::{
    participant::{Participant, Settled, Vote},
    resource::{PostgresResource, PreflightError, Resource},
};
use unanimity_proto::v1::AbortCode;
use unanimity_tests::postgres::Postgres;

struct PgBank {
    resource: Resource,
    url: String,
}

impl Bank for PgBank {
    fn resource(&self) -> &Resource {
        &self.resource
    }

    async fn balance(&self, account: &str) -> i64 {
        let mut connection = self.connection().await;
        sqlx::query_scalar("SELECT balance FROM account WHERE id = $1")
            .bind(account)
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }
}

impl PgBank {
    async fn new() -> Self {
        Self::on(Postgres::shared()).await
    }

    async fn on(server: &Postgres) -> Self {
        let url = server.new_database().await;
        run(
            &url,
            "CREATE TABLE account (id text PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0), \
             alias int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO account VALUES ('a', 100, 1), ('b', 50, 2)",
        )
        .await;
        Self {
            resource: connect(&url).await.unwrap(),
            url,
        }
    }

    async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    fn postgres(&self) -> &PostgresResource {
        let Resource::Postgres(postgres) = &self.resource else {
            unreachable!()
        };
        postgres
    }
}

async fn connect(url: &str) -> Result<Resource, PreflightError> {
    Resource::connect(fixture::options(
        url.into(),
        fixture::catalog(|n| format!("${n}")),
    ))
    .await
}

async fn run(url: &str, script: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(script.to_owned()))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

macro_rules! shared_behaviour {
    ($module:ident => $($name:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            $module::$name(&PgBank::new().await).await;
        })*
    };
}

mod postgres {
    mod steps;
}

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
    let bank = PgBank::new().await;
    fixture::fences_a_one_phase_commit_that_comes_after_the_proof(&bank, async || {
        connect(&bank.url).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_only_young_markers() {
    let bank = PgBank::new().await;
    let old = async || {
        run(
            &bank.url,
            "UPDATE unanimity_marker SET created_at = now() - interval '8 days'",
        )
        .await
    };
    fixture::keeps_only_young_markers(&bank, old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tells_a_rollback_by_hand_from_a_commit_by_hand() {
    let bank = PgBank::new().await;
    let (undone, done) = (branch(), branch());
    let proof = prepare_debit(&bank, &undone, 30).await;
    run(&bank.url, &format!("ROLLBACK PREPARED '{undone}'")).await;
    assert_eq!(
        bank.resource.commit(&undone, &proof).await,
        Settled::Aborted
    );
    let proof = prepare_debit(&bank, &done, 30).await;
    run(&bank.url, &format!("COMMIT PREPARED '{done}'")).await;
    assert_eq!(bank.resource.abort(&done, &proof).await, Settled::Committed);
    assert_eq!(
        bank.resource.commit(&done, &proof).await,
        Settled::Committed
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_lost_to_a_proof_from_the_future_of_this_database() {
    let bank = PgBank::new().await;
    assert!(matches!(
        bank.resource.commit(&branch(), "99999999999").await,
        Settled::Lost(_)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn carries_the_transaction_id_as_proof() {
    let bank = PgBank::new().await;
    let branch = branch();
    let proof = prepare_debit(&bank, &branch, 30).await;
    let status = |mut connection: PgConnection| {
        let proof = proof.clone();
        async move {
            let query = "SELECT pg_xact_status($1::text::xid8)";
            sqlx::query_scalar::<_, Option<String>>(query)
                .bind(proof)
                .fetch_one(&mut connection)
                .await
                .unwrap()
                .unwrap()
        }
    };
    assert_eq!(status(bank.connection().await).await, "in progress");
    bank.resource.commit(&branch, &proof).await;
    assert_eq!(status(bank.connection().await).await, "committed");
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_after_the_server_was_killed_with_the_branch_prepared() {
    let mut server = Postgres::start(&["max_prepared_transactions=10"]);
    let bank = PgBank::on(&server).await;
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
async fn refuses_a_server_that_takes_no_prepared_transactions_and_says_what_to_do() {
    let mut server = Postgres::start(&["max_prepared_transactions=0"]);
    let Err(PreflightError::Refused { problem, remedy }) = connect(&server.url("postgres")).await
    else {
        panic!("accepted")
    };
    assert!(
        problem.contains("max_prepared_transactions is 0"),
        "{problem}"
    );
    assert!(
        remedy.contains("set max_prepared_transactions = 64 in postgresql.conf and restart"),
        "{remedy}"
    );
    server.kill();
    assert!(matches!(
        connect(&server.url("postgres")).await,
        Err(PreflightError::Unavailable(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_a_server_without_fsync_and_a_url_that_it_can_not_read() {
    let server = Postgres::start(&["max_prepared_transactions=10", "fsync=off"]);
    assert!(matches!(
        connect(&server.url("postgres")).await,
        Err(PreflightError::Refused { .. })
    ));
    for url in [
        "postgres://u:secret@[bad/x",
        "secret://x",
        "postgres://u:secret@h:port/x",
    ] {
        let Err(error @ PreflightError::Refused { .. }) = connect(url).await else {
            panic!("{url}")
        };
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_a_role_without_rights_beyond_its_tables() {
    let bank = PgBank::new().await;
    let refused = "CREATE ROLE plain LOGIN; GRANT SELECT, UPDATE ON account TO plain; REVOKE ALL ON unanimity_marker FROM PUBLIC";
    run(&bank.url, refused).await;
    let (_, database) = bank.url.rsplit_once('/').unwrap();
    let url = Postgres::shared().url_as("plain", database);
    let Err(PreflightError::Refused { remedy, .. }) = connect(&url).await else {
        panic!("accepted")
    };
    assert!(
        remedy.contains("grant SELECT, INSERT, UPDATE, DELETE"),
        "{remedy}"
    );
    run(
        &bank.url,
        "GRANT SELECT, INSERT, UPDATE, DELETE ON unanimity_marker TO plain; GRANT SELECT, INSERT, UPDATE ON unanimity_fence TO plain",
    )
    .await;
    let plain = connect(&url).await.unwrap();
    let branch = branch();
    let Vote::Yes { proof, .. } = plain
        .prepare(prepare(&branch, vec![change("debit", "a", 30)]))
        .await
    else {
        panic!("no")
    };
    assert_eq!(plain.commit(&branch, &proof).await, Settled::Committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_what_postgresql_can_not_prepare_and_what_breaks_at_prepare() {
    let bank = PgBank::new().await;
    let temporary = branch();
    let vote = bank
        .resource
        .prepare(prepare(
            &temporary,
            vec![sql("CREATE TEMP TABLE t (a int)", &[])],
        ))
        .await;
    assert_eq!(code(&vote), AbortCode::InvalidOperation);
    let deferred = || vec![sql("UPDATE account SET alias = 1", &[])];
    assert_eq!(
        code(&bank.resource.prepare(prepare(&branch(), deferred())).await),
        AbortCode::Refused
    );
    assert_eq!(
        code(
            &bank
                .resource
                .prepare(one_phase(&branch(), "r", deferred()))
                .await
        ),
        AbortCode::Refused
    );
    assert!(bank.resource.in_doubt().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn finds_out_the_truth_when_its_session_is_killed_at_the_last_moment() {
    let bank = PgBank::new().await;
    let trigger = "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER die AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die()";
    run(&bank.url, trigger).await;
    for one_phase in [true, false] {
        let branch = branch();
        let prepare = unanimity_participant::participant::Prepare {
            one_phase,
            ..prepare(&branch, vec![change("debit", "a", 30)])
        };
        let vote = bank.resource.prepare(prepare.clone()).await;
        assert_eq!(code(&vote), AbortCode::ParticipantUnavailable);
        assert_eq!(bank.resource.prepare(prepare).await, vote);
        assert_eq!(bank.resource.prove(&branch).await, Settled::Aborted);
    }
    assert_eq!(bank.balance("a").await, 100);
    assert!(bank.resource.in_doubt().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn gives_up_in_time_behind_a_lock_and_holds_none_afterwards() {
    let bank = PgBank::new().await;
    let holder = branch();
    let proof = prepare_debit(&bank, &holder, 30).await;
    let late = fixture::branch();
    let waiting = unanimity_participant::participant::Prepare {
        timeout: Duration::from_millis(300),
        ..prepare(
            &late,
            vec![change("credit", "b", 1), change("debit", "a", 1)],
        )
    };
    assert_eq!(
        code(&bank.resource.prepare(waiting.clone()).await),
        AbortCode::Timeout
    );
    let sleeping = unanimity_participant::participant::Prepare {
        branch: branch(),
        operations: vec![change("credit", "b", 1), sql("SELECT pg_sleep(60)", &[])],
        ..waiting
    };
    assert_eq!(
        code(&bank.resource.prepare(sleeping).await),
        AbortCode::Timeout
    );
    assert_eq!(
        bank.resource.commit(&holder, &proof).await,
        Settled::Committed
    );
    let free = branch();
    let vote = bank
        .resource
        .prepare(prepare(&free, vec![change("credit", "b", 1)]))
        .await;
    assert!(matches!(vote, Vote::Yes { .. }), "{vote:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_told_as_such() {
    let bank = PgBank::new().await;
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
}

#[tokio::test(flavor = "multi_thread")]
async fn prepares_what_a_service_did_on_the_connection_itself() {
    let bank = PgBank::new().await;
    let (branch, limit) = (branch(), Duration::from_secs(5));
    for account in ["a", "b"] {
        let mut open = bank.postgres().open(&branch, limit).await.unwrap();
        let query = sqlx::query("UPDATE account SET balance = balance + 1 WHERE id = $1");
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
async fn votes_no_for_a_branch_that_its_service_dropped_or_still_holds_or_broke() {
    let bank = PgBank::new().await;
    let limit = Duration::from_secs(5);
    let (dropped, held, broken) = (branch(), branch(), branch());
    let mut open = bank.postgres().open(&dropped, limit).await.unwrap();
    sqlx::query("UPDATE account SET balance = 0")
        .execute(open.connection())
        .await
        .unwrap();
    drop(open);
    assert_eq!(
        code(&bank.resource.prepare(continued(&dropped)).await),
        AbortCode::BranchLost
    );

    let mut open = bank.postgres().open(&held, limit).await.unwrap();
    sqlx::query("UPDATE account SET balance = 0")
        .execute(open.connection())
        .await
        .unwrap();
    assert_eq!(
        code(&bank.resource.prepare(continued(&held)).await),
        AbortCode::BranchLost
    );
    assert!(
        sqlx::query("SELECT 1")
            .execute(open.connection())
            .await
            .is_err(),
        "its session was ended"
    );
    assert_eq!(open.finish().unwrap_err().code, AbortCode::BranchLost);

    let mut open = bank.postgres().open(&broken, limit).await.unwrap();
    sqlx::query("UPDATE account SET balance = 0")
        .execute(open.connection())
        .await
        .unwrap();
    sqlx::query("SELECT 1 / 0")
        .execute(open.connection())
        .await
        .unwrap_err();
    open.finish().unwrap();
    assert!(matches!(
        bank.resource.prepare(continued(&broken)).await,
        Vote::No(_)
    ));
    assert_eq!(bank.balance("a").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn believes_no_prepare_that_postgresql_turned_into_a_rollback() {
    let bank = PgBank::new().await;
    let (branch, limit) = (branch(), Duration::from_secs(5));
    let debit = change("debit", "a", 30);
    let debited = bank.resource.operate(&branch, true, debit, limit).await;
    debited.unwrap();
    let mut open = bank.postgres().open(&branch, limit).await.unwrap();
    let failed = sqlx::query("SELECT 1 / 0").execute(open.connection()).await;
    failed.unwrap_err();
    open.finish().unwrap();
    let vote = bank.resource.prepare(continued(&branch)).await;
    assert_eq!(code(&vote), AbortCode::ParticipantFailure);
    assert!(bank.resource.in_doubt().await.unwrap().is_empty());
    assert_eq!(bank.balance("a").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_share_the_branches_of_a_participant() {
    let bank = PgBank::new().await;
    let other = connect(&bank.url).await.unwrap();
    assert_eq!(other.identity(), bank.resource.identity());
    let branch = branch();
    let proof = prepare_debit(&bank, &branch, 30).await;
    // A prepare that strayed to the second agent finds the row locked by the first; what is prepared stands.
    assert_eq!(other.commit(&branch, &proof).await, Settled::Committed);
    assert_eq!(
        bank.resource.commit(&branch, &proof).await,
        Settled::Committed
    );
    run(
        &bank.url,
        "BEGIN; UPDATE account SET balance = 1; PREPARE TRANSACTION 'somebody else''s'",
    )
    .await;
    let found = other.in_doubt().await.unwrap();
    assert_eq!(
        (found.len(), &*found[0].identifier, &found[0].branch),
        (1, "somebody else's", &None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_with_their_values() {
    let bank = PgBank::new().await;
    let query = "SELECT true, 1::int2, 2.5::float8, 12.340::numeric, NULL::int, 'x'::varchar, '\\x01ff'::bytea, \
         '2024-02-29'::date, '2024-02-29 12:34:56.5+00'::timestamptz, '{\"a\": 1}'::jsonb, $1::int8, $2";
    let arguments = [fixture::integer(7), fixture::text("y")];
    let result = bank
        .resource
        .operate(
            &branch(),
            true,
            sql(query, &arguments),
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
        "Boolean(true)",
        "Integer(1)",
        "Float(2.5)",
        "Text(\"12.340\")",
        "Null(true)",
        "Text(\"x\")",
        "Bytes([1, 255])",
        "Text(\"2024-02-29\")",
        "Text(\"2024-02-29 12:34:56.5+00\")",
        "Text(\"{\\\"a\\\": 1}\")",
        "Integer(7)",
        "Text(\"y\")",
    ];
    assert_eq!(shown, expected);
}
