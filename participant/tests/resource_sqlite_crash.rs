//! SQLite's prepared state is our own work, so here it is attacked: whatever a branch was promised must come out the same with and without a
//! crash, and nothing that is not part of a committed branch may ever stay.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
#![allow(dead_code, reason = "the fixture serves other tests too")]

mod fixture;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use fixture::{
    branch, catalog, change, code, continued, integer, one_phase, options, prepare, sql,
};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions,
};
use unanimity_participant::{
    participant::{BranchId, Participant, Prepare, Settled, Vote},
    resource::{Resource, SqliteResource},
};
use unanimity_proto::v1::AbortCode;

const ACCOUNTS: &str =
    "CREATE TABLE account (id TEXT PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0));
    INSERT INTO account VALUES ('a', 100), ('b', 50);";

struct Bank {
    resource: Option<Resource>,
    directory: tempfile::TempDir,
}

impl Bank {
    /// With accounts, and what else the script makes.
    async fn new(script: &str) -> Self {
        let mut bank = Self {
            resource: None,
            directory: tempfile::tempdir().unwrap(),
        };
        let made = SqliteConnectOptions::new()
            .filename(bank.path())
            .create_if_missing(true);
        made.connect().await.unwrap().close().await.unwrap();
        bank.outside(ACCOUNTS).await;
        bank.outside(script).await;
        bank.crash().await;
        bank
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("bank.db")
    }

    /// The agent ends, without a word, and another one comes.
    async fn crash(&mut self) {
        self.resource = None;
        let url = format!("sqlite:{}", self.path().display());
        let options = options(url, catalog(|_| "?".into()));
        self.resource = Some(Resource::connect(options).await.unwrap());
    }

    fn resource(&self) -> &Resource {
        self.resource.as_ref().unwrap()
    }

    fn sqlite(&self) -> &SqliteResource {
        let Some(Resource::Sqlite(sqlite)) = &self.resource else {
            unreachable!()
        };
        sqlite
    }

    async fn connection(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new()
            .filename(self.path())
            .foreign_keys(false);
        options.connect().await.unwrap()
    }

    async fn outside(&self, script: &str) {
        let script = sqlx::raw_sql(AssertSqlSafe(script.to_owned()));
        script.execute(&mut self.connection().await).await.unwrap();
    }

    async fn rows(&self, query: &str) -> Vec<String> {
        let query = sqlx::query_scalar(AssertSqlSafe(query.to_owned()));
        query.fetch_all(&mut self.connection().await).await.unwrap()
    }

    async fn balances(&self) -> Vec<String> {
        self.rows("SELECT balance || '' FROM account ORDER BY id")
            .await
    }

    async fn prepare(&self, statements: &[&str]) -> (BranchId, Vote) {
        let branch = branch();
        let work = statements.iter().map(|text| sql(text, &[])).collect();
        let vote = self.resource().prepare(prepare(&branch, work)).await;
        (branch, vote)
    }

    async fn commit(&self, branch: &BranchId) -> Settled {
        self.resource().commit(branch, "marker").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_takes_null_although_it_is_an_integer_is_no_way_round_the_record() {
    let mut bank =
        Bank::new("CREATE TABLE payment (id INTEGER PRIMARY KEY DESC, amount INTEGER);").await;
    let (lost, vote) = bank
        .prepare(&[
            "INSERT INTO payment (amount) VALUES (500)",
            "UPDATE account SET balance = 1 WHERE id = 'a'",
        ])
        .await;
    assert_eq!(code(&vote), AbortCode::Refused, "{vote:?}");
    let (kept, vote) = bank.prepare(&["INSERT INTO payment VALUES (1, 500)"]).await;
    assert!(matches!(vote, Vote::Yes { .. }), "{vote:?}");
    bank.crash().await;
    assert_eq!(bank.commit(&kept).await, Settled::Committed);
    assert_eq!(bank.rows("SELECT amount || '' FROM payment").await, ["500"]);
    assert_ne!(bank.commit(&lost).await, Settled::Committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_equals_another_by_its_collation_only_is_refused() {
    let bank = Bank::new(
        "CREATE TABLE user (id TEXT PRIMARY KEY COLLATE NOCASE, n INTEGER); INSERT INTO user VALUES ('Alice', 1);",
    )
    .await;
    for statements in [
        &["UPDATE user SET id = 'alice' WHERE id = 'Alice'"][..],
        &[
            "DELETE FROM user WHERE id = 'Alice'",
            "INSERT INTO user VALUES ('alice', 6)",
        ],
        &["INSERT OR REPLACE INTO user VALUES ('ALICE', 8)"],
    ] {
        let (_, vote) = bank.prepare(statements).await;
        assert_eq!(code(&vote), AbortCode::Refused, "{statements:?}: {vote:?}");
        assert_eq!(bank.rows("SELECT id || n FROM user").await, ["Alice1"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_statement_text_ends_the_transaction() {
    let bank = Bank::new("").await;
    for smuggled in [
        "SELECT $1('); COMMIT; BEGIN IMMEDIATE; SELECT $1(')",
        "SELECT $1('); ROLLBACK; BEGIN IMMEDIATE; SELECT $1(')",
        "SELECT $1('); SAVEPOINT s; SELECT $1(')",
        "SELECT $1('); ATTACH 'other.db' AS other; SELECT $1(')",
        "SELECT 1\0",
    ] {
        let branch = branch();
        let work = vec![
            change("debit", "a", 30),
            sql(smuggled, &[integer(1), integer(1)]),
            change("credit", "b", 30),
        ];
        let vote = bank.resource().prepare(prepare(&branch, work)).await;
        assert!(matches!(vote, Vote::No(_)), "{smuggled}: {vote:?}");
        assert_eq!(
            bank.resource().abort(&branch, "marker").await,
            Settled::Aborted
        );
        assert_eq!(bank.balances().await, ["100", "50"], "{smuggled}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_can_not_end_the_transaction_on_its_connection() {
    let bank = Bank::new("").await;
    let branch = branch();
    let mut open = bank
        .sqlite()
        .open(&branch, Duration::from_secs(5))
        .await
        .unwrap();
    let debit = "UPDATE account SET balance = balance - 30 WHERE id = 'a'";
    sqlx::query(debit).execute(open.connection()).await.unwrap();
    for end in [
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT s",
        "ATTACH ':memory:' AS m",
    ] {
        let ended = sqlx::raw_sql(end).execute(open.connection()).await;
        assert!(ended.is_err(), "{end}");
    }
    open.finish().unwrap();
    let vote = bank.resource().prepare(continued(&branch)).await;
    assert!(matches!(vote, Vote::Yes { .. }), "{vote:?}");
    assert_eq!(bank.commit(&branch).await, Settled::Committed);
    assert_eq!(bank.balances().await, ["70", "50"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_rollback_that_sqlite_made_by_itself_does_not_stay() {
    for one_phase in [false, true] {
        let bank = Bank::new("").await;
        let branch = branch();
        let mut open = bank
            .sqlite()
            .open(&branch, Duration::from_secs(5))
            .await
            .unwrap();
        let debit = "UPDATE account SET balance = balance - 30 WHERE id = 'a'";
        sqlx::query(debit).execute(open.connection()).await.unwrap();
        let conflict = "INSERT OR ROLLBACK INTO account VALUES ('a', 1)";
        let failed = sqlx::query(conflict).execute(open.connection()).await;
        assert!(failed.is_err());
        // A service that goes on all the same.
        let credit = "UPDATE account SET balance = balance + 30 WHERE id = 'b'";
        let followed = sqlx::query(credit).execute(open.connection()).await;
        assert!(followed.is_err(), "it would commit on its own");
        open.finish().unwrap();
        let prepare = Prepare {
            one_phase,
            request_id: "r".into(),
            ..continued(&branch)
        };
        let vote = bank.resource().prepare(prepare).await;
        assert!(matches!(vote, Vote::No(_)), "{vote:?}");
        assert_eq!(bank.balances().await, ["100", "50"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_service_does_after_the_abort_does_not_stay() {
    let bank = Arc::new(Bank::new("CREATE TABLE big (v); CREATE TABLE trouble (what TEXT);").await);
    let branch = branch();
    let mut open = bank
        .sqlite()
        .open(&branch, Duration::from_secs(30))
        .await
        .unwrap();
    let (other, id) = (Arc::clone(&bank), branch.clone());
    let abort = tokio::spawn(async move { other.resource().abort(&id, "").await });
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) INSERT INTO big SELECT i FROM n";
    let interrupted = sqlx::query(endless).execute(open.connection()).await;
    assert!(interrupted.is_err());
    assert_eq!(abort.await.unwrap(), Settled::Aborted);
    let note = "INSERT INTO trouble VALUES ('it took too long')";
    let _ = sqlx::query(note).execute(open.connection()).await;
    assert!(open.finish().is_err());
    let (_, vote) = bank
        .prepare(&["UPDATE account SET balance = 99 WHERE id = 'a'"])
        .await;
    assert!(matches!(vote, Vote::Yes { .. }), "the writer is free again");
    assert!(bank.rows("SELECT what FROM trouble").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_marker_of_a_time_that_is_purged_proves_nothing() {
    let mut bank = Bank::new("").await;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let minted = now.as_millis() - 8 * 86_400_000;
    let unique = uuid::Uuid::now_v7().simple().to_string();
    let old = BranchId {
        transaction: format!("u1.0a1b2c3d.1.{minted:012x}{}", &unique[12..]),
        number: 1,
    };
    let work = vec![change("debit", "a", 30)];
    let vote = bank.resource().prepare(one_phase(&old, "r", work)).await;
    assert_eq!(vote, Vote::Committed);
    assert_eq!(bank.resource().prove(&old).await, Settled::Committed);
    bank.outside("UPDATE unanimity_marker SET created_at = created_at - 8 * 86400")
        .await;
    assert_eq!(bank.resource().purge().await.unwrap(), 1);
    bank.crash().await;
    let proof = bank.resource().prove(&old).await;
    assert!(matches!(proof, Settled::Retry(_)), "{proof:?}");
    assert_eq!(bank.balances().await, ["70", "50"]);
}

struct Rng(u64);
impl Rng {
    fn next(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.next(of.len() as u64) as usize]
    }
}

const SHAPES: &str = "\
 CREATE TABLE t0 (id INTEGER PRIMARY KEY, u INTEGER UNIQUE, w TEXT, v);\
 CREATE TABLE t1 (id TEXT NOT NULL PRIMARY KEY, u TEXT COLLATE NOCASE UNIQUE, w INTEGER, v) WITHOUT ROWID;\
 CREATE TABLE t2 (id NOT NULL, k INTEGER NOT NULL, u INTEGER, w, v, PRIMARY KEY (id, k));\
 CREATE UNIQUE INDEX t2u ON t2 (u) WHERE w IS NOT NULL;\
 CREATE TABLE t3 (id, u, w, v);\
 CREATE UNIQUE INDEX t3u ON t3 (u, w);\
 CREATE TABLE p (id INTEGER PRIMARY KEY, u INTEGER UNIQUE);\
 CREATE TABLE c (id INTEGER PRIMARY KEY, u INTEGER REFERENCES p (u) ON DELETE SET NULL ON UPDATE CASCADE, w INTEGER REFERENCES p (id) ON DELETE CASCADE ON UPDATE SET DEFAULT DEFERRABLE INITIALLY DEFERRED, v);\
 CREATE TABLE selfref (id INTEGER PRIMARY KEY, up INTEGER REFERENCES selfref (id) ON DELETE CASCADE ON UPDATE CASCADE);\
 CREATE TABLE g (id INTEGER PRIMARY KEY, v INTEGER, d AS (v % 7) STORED UNIQUE);\
 CREATE TABLE audit (at INTEGER PRIMARY KEY AUTOINCREMENT, what);\
 CREATE TRIGGER tr0 AFTER UPDATE ON t0 BEGIN INSERT INTO audit (what) VALUES (old.id); UPDATE t3 SET v = new.u WHERE id = new.id; END;\
 CREATE TRIGGER tr1 AFTER DELETE ON t1 BEGIN DELETE FROM t3 WHERE id = old.w; END;\
 CREATE TRIGGER tr2 AFTER INSERT ON t3 WHEN new.v IS NOT NULL BEGIN UPDATE t2 SET w = new.v WHERE k = new.id; END;\
 INSERT INTO t0 VALUES (1,1,'a',1),(2,2,'b',NULL),(3,3,'c',2.5),(4,NULL,NULL,X'00');\
 INSERT INTO t1 VALUES ('a','x',1,1),('b','y',2,2),('c','z',3,3);\
 INSERT INTO t2 VALUES (1,1,1,1,1),(1,2,2,2,2),('1',1,3,3,3),(2,1,4,NULL,4);\
 INSERT INTO t3 VALUES (1,1,1,1),(2,2,2,2),(3,3,3,3),(NULL,NULL,NULL,NULL);\
 INSERT INTO p VALUES (1,1),(2,2),(3,3),(4,4); INSERT INTO c VALUES (1,1,1,1),(2,2,2,2),(3,1,3,3),(4,NULL,1,4);\
 INSERT INTO selfref VALUES (1,NULL),(2,1),(3,2),(4,1); INSERT INTO g (id, v) VALUES (1,1),(2,2),(3,3);";

fn statement(r: &mut Rng) -> String {
    let n = |r: &mut Rng| r.next(7).to_string();
    let s = |r: &mut Rng| {
        r.pick(&[
            "'a'", "'b'", "'c'", "'A'", "'d'", "'x'", "'X'", "NULL", "'z'",
        ])
        .to_owned()
    };
    let any = |r: &mut Rng| {
        r.pick(&[
            "1", "2", "3", "'1'", "1.0", "NULL", "X'31'", "5", "'q'", "2.5",
        ])
        .to_owned()
    };
    let or = r
        .pick(&["", "OR REPLACE ", "OR IGNORE ", "OR REPLACE "])
        .to_owned();
    match r.next(20) {
        0 => format!(
            "INSERT {or}INTO t0 VALUES ({},{},{},{})",
            n(r),
            n(r),
            s(r),
            any(r)
        ),
        1 => format!(
            "UPDATE {or}t0 SET id = {}, u = {} WHERE id = {}",
            n(r),
            any(r),
            n(r)
        ),
        2 => format!("UPDATE {or}t0 SET u = {} WHERE id = {}", n(r), n(r)),
        3 => format!("DELETE FROM t0 WHERE id = {}", n(r)),
        4 => format!(
            "INSERT {or}INTO t1 VALUES ({},{},{},{})",
            s(r),
            s(r),
            n(r),
            any(r)
        ),
        5 => format!(
            "UPDATE {or}t1 SET id = {}, u = {} WHERE id = {}",
            s(r),
            s(r),
            s(r)
        ),
        6 => format!("DELETE FROM t1 WHERE id = {}", s(r)),
        7 => format!(
            "INSERT {or}INTO t2 VALUES ({},{},{},{},{})",
            any(r),
            n(r),
            any(r),
            any(r),
            any(r)
        ),
        8 => format!(
            "UPDATE {or}t2 SET id = {}, u = {}, w = {} WHERE k = {}",
            any(r),
            any(r),
            any(r),
            n(r)
        ),
        9 => format!("DELETE FROM t2 WHERE id = {}", any(r)),
        10 => format!(
            "INSERT {or}INTO t3 VALUES ({},{},{},{})",
            any(r),
            any(r),
            any(r),
            any(r)
        ),
        11 => format!(
            "UPDATE {or}t3 SET rowid = {}, u = {} WHERE rowid = {}",
            n(r),
            any(r),
            n(r)
        ),
        12 => format!("DELETE FROM t3 WHERE u = {}", any(r)),
        13 => format!(
            "UPDATE {or}p SET id = {}, u = {} WHERE id = {}",
            n(r),
            n(r),
            n(r)
        ),
        14 => format!("DELETE FROM p WHERE id = {}", n(r)),
        15 => format!("INSERT {or}INTO p VALUES ({},{})", n(r), n(r)),
        16 => format!(
            "INSERT {or}INTO c VALUES ({},{},{},{})",
            n(r),
            n(r),
            n(r),
            any(r)
        ),
        17 => format!("UPDATE {or}selfref SET id = {} WHERE id = {}", n(r), n(r)),
        18 => format!("INSERT {or}INTO g (id, v) VALUES ({}, {})", n(r), n(r)),
        _ => format!(
            "UPDATE {or}g SET id = {}, v = {} WHERE id = {}",
            n(r),
            n(r),
            n(r)
        ),
    }
}

/// What stands in every table.
async fn contents(bank: &Bank) -> Vec<(&'static str, Vec<String>)> {
    const TABLES: [(&str, &str); 9] = [
        ("t0", "quote(id)||quote(u)||quote(w)||quote(v)"),
        ("t1", "quote(id)||quote(u)||quote(w)||quote(v)"),
        ("t2", "quote(id)||quote(k)||quote(u)||quote(w)||quote(v)"),
        ("t3", "rowid||quote(id)||quote(u)||quote(w)||quote(v)"),
        ("p", "quote(id)||quote(u)"),
        ("c", "quote(id)||quote(u)||quote(w)||quote(v)"),
        ("selfref", "quote(id)||quote(up)"),
        ("g", "quote(id)||quote(v)||quote(d)"),
        ("audit", "quote(at)||quote(what)"),
    ];
    let mut all = Vec::new();
    for (table, columns) in TABLES {
        let query = format!("SELECT {columns} FROM {table} ORDER BY 1");
        all.push((table, bank.rows(&query).await));
    }
    all
}

/// Statements that work one after the other, by trying them on the way to nowhere.
async fn script(bank: &Bank, random: &mut Rng) -> Vec<String> {
    let mut connection = bank.connection().await;
    sqlx::raw_sql("PRAGMA foreign_keys = ON; BEGIN")
        .execute(&mut connection)
        .await
        .unwrap();
    let wanted = 1 + random.next(7) as usize;
    let mut taken = Vec::new();
    for _ in 0..60 {
        if taken.len() == wanted {
            break;
        }
        let text = statement(random);
        let tried = sqlx::raw_sql(AssertSqlSafe(text.clone()));
        if tried.execute(&mut connection).await.is_ok() {
            taken.push(text);
        }
    }
    taken
}

/// Triggers, cascades, deferred keys, unique indexes of every kind: what is voted on comes out the same, crash or no crash.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_makes_no_difference_to_what_was_voted_on() {
    let seeds = std::env::var("SEEDS").unwrap_or_else(|_| "1..60".into());
    let (from, to) = seeds.split_once("..").unwrap();
    let mut voted = 0;
    for seed in from.parse().unwrap()..to.parse::<u64>().unwrap() {
        let mut random = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let live = Bank::new(SHAPES).await;
        let mut dead = Bank::new(SHAPES).await;
        let script = script(&live, &mut random).await;
        let texts: Vec<&str> = script.iter().map(String::as_str).collect();
        let (kept, vote) = live.prepare(&texts).await;
        let (replayed, same) = dead.prepare(&texts).await;
        let again = format!(
            "SEEDS={seed}..{} cargo test -p unanimity-participant --test resource_sqlite_crash",
            seed + 1
        );
        assert_eq!(vote, same, "{script:#?}\n{again}");
        if !matches!(vote, Vote::Yes { .. }) {
            continue;
        }
        voted += 1;
        assert_eq!(live.commit(&kept).await, Settled::Committed);
        dead.crash().await;
        let settled = dead.commit(&replayed).await;
        assert_eq!(settled, Settled::Committed, "{script:#?}\n{again}");
        assert_eq!(
            contents(&live).await,
            contents(&dead).await,
            "{script:#?}\n{again}"
        );
    }
    assert!(voted > 0, "nothing was tried");
}
