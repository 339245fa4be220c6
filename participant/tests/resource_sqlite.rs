//! The resource manager for SQLite.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod fixture;

use std::{path::PathBuf, time::Duration};

use fixture::{
    Bank, branch, change, code, continued, look, one_phase, prepare, prepare_debit, sql,
};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions,
};
use unanimity_participant::{
    participant::{BranchId, Participant, Prepare, Settled, Vote},
    resource::{PreflightError, Resource, SqliteResource},
};
use unanimity_proto::v1::{self, AbortCode};

struct LiteBank {
    resource: Option<Resource>,
    directory: tempfile::TempDir,
}

impl Bank for LiteBank {
    fn resource(&self) -> &Resource {
        self.resource.as_ref().unwrap()
    }

    async fn balance(&self, account: &str) -> i64 {
        let mut connection = self.connection().await;
        sqlx::query_scalar("SELECT balance FROM account WHERE id = ?")
            .bind(account)
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }
}

impl LiteBank {
    async fn new() -> Self {
        Self::with("").await
    }

    /// With more tables.
    async fn with(script: &str) -> Self {
        let mut bank = Self {
            resource: None,
            directory: tempfile::tempdir().unwrap(),
        };
        let mut connection = SqliteConnectOptions::new()
            .filename(bank.path())
            .create_if_missing(true)
            .connect()
            .await
            .unwrap();
        let tables = "CREATE TABLE account (id TEXT PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0)); \
             INSERT INTO account VALUES ('a', 100), ('b', 50);";
        sqlx::raw_sql(AssertSqlSafe(format!("{tables}{script}")))
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        bank.resource = Some(bank.connect().await.unwrap());
        bank
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("bank.db")
    }

    async fn connect(&self) -> Result<Resource, PreflightError> {
        connect(&format!("sqlite:{}", self.path().display())).await
    }

    /// As after a kill -9: the transaction is gone, nothing was said to anybody.
    async fn crash(&mut self) {
        self.stop();
        self.resource = Some(self.connect().await.unwrap());
    }

    fn stop(&mut self) {
        self.resource = None;
    }

    async fn connection(&self) -> SqliteConnection {
        SqliteConnectOptions::new()
            .filename(self.path())
            .foreign_keys(false)
            .connect()
            .await
            .unwrap()
    }

    /// Somebody who writes past the agent.
    async fn outside(&self, script: &str) {
        sqlx::raw_sql(AssertSqlSafe(script.to_owned()))
            .execute(&mut self.connection().await)
            .await
            .unwrap();
    }

    async fn rows(&self, query: &str) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(query.to_owned()))
            .fetch_all(&mut self.connection().await)
            .await
            .unwrap()
    }

    fn sqlite(&self) -> &SqliteResource {
        let Some(Resource::Sqlite(sqlite)) = &self.resource else {
            unreachable!()
        };
        sqlite
    }

    async fn in_doubt(&self) -> Vec<Option<BranchId>> {
        self.resource()
            .in_doubt()
            .await
            .unwrap()
            .into_iter()
            .map(|found| found.branch)
            .collect()
    }

    async fn prepare_sql(&self, statements: &[&str]) -> (BranchId, Vote) {
        let branch = branch();
        let operations = statements
            .iter()
            .map(|statement| sql(statement, &[]))
            .collect();
        let vote = self.resource().prepare(prepare(&branch, operations)).await;
        (branch, vote)
    }
}

async fn connect(url: &str) -> Result<Resource, PreflightError> {
    Resource::connect(fixture::options(
        url.into(),
        fixture::catalog(|_| "?".into()),
    ))
    .await
}

macro_rules! shared_behaviour {
    ($module:ident => $($name:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            $module::$name(&LiteBank::new().await).await;
        })*
    };
}

mod sqlite {
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
    let mut bank = LiteBank::new().await;
    let (committed, never) = (branch(), branch());
    let debit = || vec![change("debit", "a", 30)];
    assert_eq!(
        bank.resource()
            .prepare(one_phase(&committed, "r1", debit()))
            .await,
        Vote::Committed
    );
    assert_eq!(bank.resource().prove(&never).await, Settled::Aborted);
    bank.crash().await;
    assert_eq!(bank.resource().prove(&committed).await, Settled::Committed);
    bank.crash().await;
    assert_eq!(
        bank.resource()
            .prepare(one_phase(&committed, "r1", debit()))
            .await,
        Vote::Committed
    );
    assert_eq!(
        code(
            &bank
                .resource()
                .prepare(one_phase(&never, "r2", debit()))
                .await
        ),
        AbortCode::BranchLost
    );
    assert_eq!(
        bank.resource()
            .prepare(one_phase(&branch(), "r2", debit()))
            .await,
        Vote::Committed
    );
    assert_eq!(bank.balance("a").await, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_only_young_markers() {
    let bank = LiteBank::new().await;
    let old = async || {
        bank.outside("UPDATE unanimity_marker SET created_at = created_at - 8 * 86400")
            .await
    };
    fixture::keeps_only_young_markers(&bank, old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_after_a_crash_what_it_had_prepared() {
    let mut bank = LiteBank::new().await;
    let branch = branch();
    let proof = prepare_debit(&bank, &branch, 30).await;
    for _ in 0..2 {
        bank.crash().await;
        assert_eq!(bank.in_doubt().await, [Some(branch.clone())]);
        assert_eq!(bank.balance("a").await, 100);
    }
    // Nobody else gets in before it is settled.
    let other = Prepare {
        timeout: Duration::from_millis(100),
        ..prepare(&fixture::branch(), vec![change("debit", "a", 1)])
    };
    assert_eq!(
        code(&bank.resource().prepare(other).await),
        AbortCode::Timeout
    );
    assert_eq!(
        bank.resource().commit(&branch, &proof).await,
        Settled::Committed
    );
    assert_eq!(bank.balance("a").await, 70);
    assert_eq!(
        bank.rows("SELECT transaction_id FROM unanimity_marker WHERE outcome = 1")
            .await,
        [&*branch.transaction]
    );
    bank.crash().await;
    assert_eq!(bank.in_doubt().await, []);
    assert_eq!(
        bank.resource().commit(&branch, &proof).await,
        Settled::Committed
    );
    assert_eq!(bank.balance("a").await, 70);
}

#[tokio::test(flavor = "multi_thread")]
async fn aborts_after_a_crash_what_it_had_prepared() {
    let mut bank = LiteBank::new().await;
    let branch = branch();
    let proof = prepare_debit(&bank, &branch, 30).await;
    bank.crash().await;
    assert_eq!(
        bank.resource().abort(&branch, &proof).await,
        Settled::Aborted
    );
    bank.crash().await;
    assert_eq!(bank.in_doubt().await, []);
    assert_eq!(
        bank.resource().commit(&branch, &proof).await,
        Settled::Aborted
    );
    assert_eq!(bank.balance("a").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_was_not_cleared_after_the_commit_is_recognised_by_the_marker() {
    let mut bank = LiteBank::new().await;
    let branch = branch();
    let proof = prepare_debit(&bank, &branch, 30).await;
    let journal = bank.directory.path().join("bank.db.unanimity-prepared");
    let whole = std::fs::read(&journal).unwrap();
    assert_eq!(
        bank.resource().commit(&branch, &proof).await,
        Settled::Committed
    );
    bank.stop();
    std::fs::write(&journal, &whole).unwrap();
    bank.crash().await;
    assert_eq!(bank.in_doubt().await, []);
    assert_eq!(bank.balance("a").await, 70);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_journal_was_never_voted_on() {
    let mut bank = LiteBank::new().await;
    prepare_debit(&bank, &branch(), 30).await;
    bank.stop();
    let journal = bank.directory.path().join("bank.db.unanimity-prepared");
    let mut torn = std::fs::read(&journal).unwrap();
    *torn.last_mut().unwrap() ^= 1;
    std::fs::write(&journal, &torn).unwrap();
    bank.crash().await;
    assert_eq!(bank.in_doubt().await, []);
    prepare_debit(&bank, &branch(), 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn never_writes_over_what_somebody_else_wrote_after_a_crash() {
    let mut bank = LiteBank::new().await;
    for commit in [true, false] {
        let branch = branch();
        let proof = prepare_debit(&bank, &branch, 1).await;
        bank.stop();
        bank.outside("UPDATE account SET balance = balance - 10 WHERE id = 'a'")
            .await;
        let left = bank.balance("a").await;
        bank.crash().await;
        assert_eq!(bank.in_doubt().await, [Some(branch.clone())]);
        if commit {
            let Settled::Lost(problem) = bank.resource().commit(&branch, &proof).await else {
                panic!("not lost")
            };
            assert!(
                problem.contains("a row has other values than before"),
                "{problem}"
            );
            let aside = format!("bank.db.unanimity-prepared.lost-{branch}");
            assert!(
                problem.contains(&aside) && bank.directory.path().join(&aside).exists(),
                "{problem}"
            );
        } else {
            assert_eq!(
                bank.resource().abort(&branch, &proof).await,
                Settled::Aborted
            );
        }
        assert_eq!(bank.balance("a").await, left);
        bank.crash().await;
        assert_eq!(bank.in_doubt().await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn does_not_pass_over_the_rows_of_a_table_that_changed_its_shape() {
    let mut bank = LiteBank::new().await;
    let branch = branch();
    let proof = prepare_debit(&bank, &branch, 1).await;
    bank.stop();
    bank.outside("ALTER TABLE account RENAME TO account_of_old; CREATE TABLE account (id TEXT, balance INTEGER)").await;
    bank.crash().await;
    assert!(matches!(
        bank.resource().commit(&branch, &proof).await,
        Settled::Lost(_)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn makes_every_kind_of_change_again_after_a_crash() {
    let mut bank = LiteBank::with(
        "CREATE TABLE plain (value); \
         CREATE TABLE counted (id INTEGER PRIMARY KEY AUTOINCREMENT, value TEXT, long AS (value || value) STORED, short AS (substr(value, 1, 1))); \
         CREATE TABLE keyed (a TEXT NOT NULL, b INTEGER NOT NULL, value BLOB, PRIMARY KEY (a, b)) WITHOUT ROWID; \
         CREATE TABLE parent (id INTEGER PRIMARY KEY); \
         CREATE TABLE child (id INTEGER PRIMARY KEY, parent REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE); \
         CREATE TABLE log (at INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT); \
         CREATE TRIGGER logged AFTER UPDATE ON account BEGIN INSERT INTO log (what) VALUES (old.id || random()); END; \
         CREATE TRIGGER balanced AFTER DELETE ON child BEGIN UPDATE account SET balance = balance + 1 WHERE id = 'b'; END; \
         INSERT INTO plain VALUES (1), (2), (NULL); INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (10, 1), (20, 2); \
         INSERT INTO keyed VALUES ('x', 1, X'00');",
    )
    .await;
    let (branch, vote) = bank
        .prepare_sql(&[
            "UPDATE account SET balance = balance - 1 WHERE id = 'a'",
            "INSERT INTO plain VALUES (random()), (2.5), (X'FF'), (NULL)",
            "DELETE FROM plain WHERE value = 1",
            "UPDATE plain SET value = 'two' WHERE value = 2",
            "INSERT INTO counted (value) VALUES ('one'), ('two')",
            "UPDATE keyed SET a = 'y', value = X'01' WHERE b = 1",
            "INSERT INTO keyed VALUES ('z', 2, NULL)",
            "DELETE FROM parent WHERE id = 1",
            "UPDATE parent SET id = 3 WHERE id = 2",
        ])
        .await;
    assert_eq!(
        vote,
        Vote::Yes {
            proof: "marker".into(),
        }
    );
    bank.crash().await;
    assert_eq!(bank.in_doubt().await, [Some(branch.clone())]);
    assert_eq!(
        bank.resource().commit(&branch, "marker").await,
        Settled::Committed
    );
    assert_eq!((bank.balance("a").await, bank.balance("b").await), (99, 51));
    assert_eq!(
        bank.rows("SELECT substr(what, 1, 1) FROM log ORDER BY at")
            .await,
        ["a", "b"]
    );
    assert_eq!(
        bank.rows("SELECT typeof(value) FROM plain ORDER BY rowid")
            .await,
        ["text", "null", "integer", "real", "blob", "null"]
    );
    assert_eq!(
        bank.rows("SELECT value || long || short FROM counted ORDER BY id")
            .await,
        ["oneoneoneo", "twotwotwot"]
    );
    assert_eq!(
        bank.rows("SELECT a || b || quote(value) FROM keyed ORDER BY a")
            .await,
        ["y1X'01'", "z2NULL"]
    );
    assert_eq!(
        bank.rows("SELECT id || ':' || parent FROM child").await,
        ["20:3"]
    );
    assert_eq!(
        bank.rows("SELECT quick_check FROM pragma_quick_check")
            .await,
        ["ok"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_changes_that_could_not_be_made_again() {
    let bank = LiteBank::with(
        "CREATE TABLE seat (id INTEGER PRIMARY KEY, place INTEGER UNIQUE); INSERT INTO seat VALUES (1, 1), (2, 2), (3, 3); \
         CREATE TABLE owner (id INTEGER PRIMARY KEY, account REFERENCES account DEFERRABLE INITIALLY DEFERRED);",
    )
    .await;
    let swap = [
        "UPDATE seat SET place = 9 WHERE id = 1",
        "UPDATE seat SET place = 1 WHERE id = 2",
        "UPDATE seat SET place = 2 WHERE id = 1",
    ];
    let cases: &[(&[&str], &str)] = &[
        (&swap, "can't be made again after a crash"),
        (
            &["INSERT INTO account VALUES (NULL, 1)"],
            "rows were changed that SQLite can't record",
        ),
        (
            &[
                "UPDATE account SET balance = 0",
                "INSERT INTO account VALUES (NULL, 1)",
            ],
            "account has NULL for its primary key",
        ),
        (&["INSERT INTO owner VALUES (1, 'nobody')"], "FOREIGN KEY"),
    ];
    for (statements, message) in cases {
        let (_, vote) = bank.prepare_sql(statements).await;
        let Vote::No(refusal) = vote else {
            panic!("{vote:?}")
        };
        assert_eq!(refusal.code, AbortCode::Refused);
        assert!(refusal.message.contains(message), "{}", refusal.message);
    }
    assert_eq!(bank.in_doubt().await, []);
    // A chain is no circle.
    let (branch, vote) = bank
        .prepare_sql(&[
            "UPDATE seat SET place = 4 WHERE id = 3",
            "UPDATE seat SET place = 3 WHERE id = 2",
            "UPDATE seat SET place = 2 WHERE id = 1",
        ])
        .await;
    assert!(matches!(vote, Vote::Yes { .. }), "{vote:?}");
    assert_eq!(
        bank.resource().commit(&branch, "marker").await,
        Settled::Committed
    );
    assert_eq!(
        bank.rows("SELECT group_concat(place) FROM seat").await,
        ["2,3,4"]
    );
    assert_eq!(bank.rows("SELECT count(*) || '' FROM account").await, ["2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_what_is_no_change_of_rows_and_more_than_one_statement() {
    let bank = LiteBank::new().await;
    for statement in [
        "CREATE TABLE t (a)",
        "PRAGMA synchronous = OFF",
        "BEGIN",
        "UPDATE account SET balance = 0; COMMIT",
        "VACUUM",
    ] {
        let (_, vote) = bank.prepare_sql(&[statement]).await;
        assert_eq!(code(&vote), AbortCode::InvalidOperation, "{statement}");
    }
    assert_eq!(bank.balance("a").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_branch_waits_for_the_other_and_gives_up_in_time() {
    let bank = LiteBank::new().await;
    assert_eq!(bank.resource().capacity(), 1);
    let (first, second) = (branch(), branch());
    let proof = prepare_debit(&bank, &first, 30).await;
    let impatient = Prepare {
        timeout: Duration::from_millis(100),
        ..prepare(&branch(), vec![change("debit", "a", 1)])
    };
    assert_eq!(
        code(&bank.resource().prepare(impatient).await),
        AbortCode::Timeout
    );
    let waiting = bank
        .resource()
        .prepare(prepare(&second, vec![change("debit", "a", 1)]));
    let (settled, vote) = tokio::join!(bank.resource().commit(&first, &proof), waiting);
    assert_eq!(settled, Settled::Committed);
    assert!(matches!(vote, Vote::Yes { .. }), "{vote:?}");
    assert_eq!(
        bank.resource().commit(&second, "marker").await,
        Settled::Committed
    );
    assert_eq!(bank.balance("a").await, 69);
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupts_what_takes_too_long() {
    let bank = LiteBank::new().await;
    let endless = sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
        &[],
    );
    let slow = Prepare {
        timeout: Duration::from_millis(200),
        ..prepare(&branch(), vec![change("debit", "a", 1), endless])
    };
    assert_eq!(
        code(&bank.resource().prepare(slow).await),
        AbortCode::Timeout
    );
    prepare_debit(&bank, &branch(), 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_waits_until_the_first_is_gone() {
    let mut bank = LiteBank::new().await;
    let Err(PreflightError::Unavailable(problem)) = bank.connect().await else {
        panic!("two agents")
    };
    assert!(problem.contains("another agent"), "{problem}");
    bank.stop();
    assert!(bank.connect().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_a_database_that_can_not_vote_and_says_what_to_do() {
    let refusal = async |url: String| match connect(&url).await {
        Err(PreflightError::Refused { problem, remedy }) => format!("{problem} / {remedy}"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("accepted {url}"),
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new.db");
    assert!(
        refusal("sqlite::memory:".into())
            .await
            .contains("in memory")
    );
    assert!(
        refusal(format!("sqlite:{}", path.display()))
            .await
            .contains("mode=rwc")
    );
    assert!(
        refusal("sqlite:/nowhere/at/all.db".into())
            .await
            .contains("directory must exist")
    );
    drop(
        connect(&format!("sqlite:{}?mode=rwc", path.display()))
            .await
            .unwrap(),
    );
    let mut connection = SqliteConnectOptions::new()
        .filename(&path)
        .connect()
        .await
        .unwrap();
    sqlx::raw_sql("CREATE TABLE pair (a TEXT, b TEXT, PRIMARY KEY (a, b))")
        .execute(&mut connection)
        .await
        .unwrap();
    assert!(
        refusal(format!("sqlite:{}", path.display()))
            .await
            .contains("pair / declare the key's columns NOT NULL")
    );
    let tables =
        "DROP TABLE pair; CREATE TABLE one (a TEXT PRIMARY KEY); INSERT INTO one VALUES (NULL)";
    sqlx::raw_sql(tables)
        .execute(&mut connection)
        .await
        .unwrap();
    assert!(
        refusal(format!("sqlite:{}", path.display()))
            .await
            .contains("one / give these rows a key")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn prepares_what_a_service_did_on_the_connection_itself() {
    let mut bank = LiteBank::new().await;
    let (branch, limit) = (branch(), Duration::from_secs(5));
    for account in ["a", "b"] {
        let mut open = bank.sqlite().open(&branch, limit).await.unwrap();
        let query = sqlx::query("UPDATE account SET balance = balance + 1 WHERE id = ?");
        query
            .bind(account)
            .execute(open.connection())
            .await
            .unwrap();
        open.finish().unwrap();
    }
    let Vote::Yes { proof, .. } = bank.resource().prepare(continued(&branch)).await else {
        panic!("no")
    };
    bank.crash().await;
    assert_eq!(
        bank.resource().commit(&branch, &proof).await,
        Settled::Committed
    );
    assert_eq!(
        (bank.balance("a").await, bank.balance("b").await),
        (101, 51)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn votes_no_for_a_branch_that_its_service_dropped_or_still_holds() {
    let bank = LiteBank::new().await;
    let limit = Duration::from_secs(5);
    let (dropped, held) = (branch(), branch());
    let mut open = bank.sqlite().open(&dropped, limit).await.unwrap();
    sqlx::query("UPDATE account SET balance = 0")
        .execute(open.connection())
        .await
        .unwrap();
    drop(open);
    assert_eq!(
        code(&bank.resource().prepare(continued(&dropped)).await),
        AbortCode::BranchLost
    );

    let mut open = bank.sqlite().open(&held, limit).await.unwrap();
    sqlx::query("UPDATE account SET balance = 0")
        .execute(open.connection())
        .await
        .unwrap();
    assert_eq!(
        code(&bank.resource().prepare(continued(&held)).await),
        AbortCode::BranchLost
    );
    let endless =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
    assert!(
        sqlx::query(endless)
            .execute(open.connection())
            .await
            .is_err(),
        "its statements are interrupted"
    );
    assert_eq!(open.finish().unwrap_err().code, AbortCode::BranchLost);
    assert_eq!(
        bank.resource()
            .prepare(prepare(&branch(), vec![look("a")]))
            .await,
        Vote::ReadOnly
    );
    assert_eq!(bank.balance("a").await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_with_their_values() {
    let bank = LiteBank::new().await;
    let query = "SELECT 7, 2.5, 'x', NULL, X'01FF', balance, ? FROM account WHERE id = 'a'";
    let limit = Duration::from_secs(5);
    let first = branch();
    let result = bank
        .resource()
        .operate(&first, true, sql(query, &[fixture::text("y")]), limit)
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
        "Text(\"x\")",
        "Null(true)",
        "Bytes([1, 255])",
        "Integer(100)",
        "Text(\"y\")",
    ];
    assert_eq!(shown, expected);
    let returning = sql("UPDATE account SET balance = balance + 1 RETURNING id", &[]);
    let result: v1::OperationResult = bank
        .resource()
        .operate(&first, false, returning, limit)
        .await
        .unwrap();
    assert_eq!((result.rows.len(), result.affected_rows), (2, 2));
    let short = bank
        .resource()
        .operate(
            &first,
            false,
            sql("SELECT ?, ?", &[fixture::text("y")]),
            limit,
        )
        .await;
    assert_eq!(short.unwrap_err().code, AbortCode::InvalidOperation);
}
