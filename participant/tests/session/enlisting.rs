//! A service's own SQL under a transaction, on SQLite.

use std::time::Duration;

use sqlx::{ConnectOptions, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use unanimity_participant::{
    enlist::{EnlistError, EnlistedBranch, Service, ServiceOptions},
    operation::Catalog,
    resource::ResourceOptions,
};
use unanimity_proto::v1;

use crate::{
    completed,
    coordinator::{Coordinator, Session, commit_with, enlist_result, prepare_continued, prove},
    enlisting, voted,
};

/// As the coordinator mints them.
const TRANSACTION: &str = "u1.0a1b2c3d.1.0198c0ffee007000800000000000cafe";

struct Bench {
    directory: TempDir,
    service: Service,
    session: Session,
    coordinator: Coordinator,
}

impl Bench {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut database = open(&directory).await;
        sqlx::raw_sql("CREATE TABLE orders (sku TEXT PRIMARY KEY)")
            .execute(&mut database)
            .await
            .expect("created");
        database.close().await.expect("closed");

        let mut coordinator = Coordinator::start().await;
        let resource = ResourceOptions {
            url: format!("sqlite:{}", directory.path().join("orders.db").display()),
            participant: "orders".into(),
            connections: 4,
            catalog: Catalog::default(),
            marker_retention: Duration::from_secs(86_400),
        };
        let service = Service::connect(ServiceOptions::new(&coordinator.uri, resource))
            .await
            .expect("connected");
        let (session, hello) = coordinator.welcomed("0a1b2c3d", 1).await;
        assert_eq!(hello.operation_policy(), v1::OperationPolicy::Listed);
        Self {
            directory,
            service,
            session,
            coordinator,
        }
    }

    async fn enlist(&mut self) -> EnlistedBranch {
        self.enlist_by().await.0
    }

    /// And by which correlation.
    async fn enlist_by(&mut self) -> (EnlistedBranch, u64) {
        let service = self.service.clone();
        let enlist = tokio::spawn(async move { service.enlist(TRANSACTION).await });
        let correlation = enlisting(self.session.next().await).correlation;
        self.session
            .send([enlist_result(correlation, Ok(TRANSACTION))]);
        let branch = enlist.await.expect("no panic").expect("a branch");
        (branch, correlation)
    }

    async fn orders(&self) -> i64 {
        let mut database = open(&self.directory).await;
        sqlx::query_scalar("SELECT count(*) FROM orders")
            .fetch_one(&mut database)
            .await
            .expect("counted")
    }
}

async fn open(directory: &TempDir) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(directory.path().join("orders.db"))
        .create_if_missing(true);
    options.connect().await.expect("opened")
}

async fn insert(branch: &mut EnlistedBranch) {
    let connection = branch.sqlite().expect("SQLite");
    sqlx::query("INSERT INTO orders VALUES (?)")
        .bind("tea")
        .execute(connection)
        .await
        .expect("inserted");
}

#[tokio::test]
async fn a_finished_branch_is_prepared_and_committed_with_its_transaction() {
    let mut bench = Bench::start().await;
    let mut branch = bench.enlist().await;
    insert(&mut branch).await;
    branch.finish().expect("finished");

    bench.session.send([prepare_continued(TRANSACTION)]);
    let vote = voted(bench.session.next().await);
    assert_eq!((vote.kind(), vote.reason), (v1::VoteKind::Yes, None));
    assert_eq!(
        bench.orders().await,
        0,
        "nothing is seen before the decision"
    );
    bench.session.send([commit_with(TRANSACTION, &vote.proof)]);
    assert_eq!(
        completed(bench.session.next().await).kind(),
        v1::CompletionKind::Committed
    );
    assert_eq!(bench.orders().await, 1);
    bench.service.stop().await;
}

#[tokio::test]
async fn an_answer_that_comes_twice_leaves_the_branch_prepared_when_the_session_is_lost() {
    let mut bench = Bench::start().await;
    let (mut branch, correlation) = bench.enlist_by().await;
    insert(&mut branch).await;
    branch.finish().expect("finished");
    bench.session.send([prepare_continued(TRANSACTION)]);
    let vote = voted(bench.session.next().await);
    bench.session.send([
        enlist_result(correlation, Ok(TRANSACTION)),
        prove("u1.after"),
    ]);
    // The answer to what came after it tells that it was read.
    bench.session.next().await;
    bench.session.lose();

    let (session, _) = bench.coordinator.welcomed("0a1b2c3d", 1).await;
    bench.session = session;
    bench.session.send([commit_with(TRANSACTION, &vote.proof)]);
    assert_eq!(
        completed(bench.session.next().await).kind(),
        v1::CompletionKind::Committed
    );
    assert_eq!(bench.orders().await, 1);
    bench.service.stop().await;
}

#[tokio::test]
async fn a_branch_dropped_unfinished_votes_no() {
    let mut bench = Bench::start().await;
    let mut branch = bench.enlist().await;
    insert(&mut branch).await;
    drop(branch);
    bench.session.send([prepare_continued(TRANSACTION)]);
    assert_eq!(voted(bench.session.next().await).kind(), v1::VoteKind::No);
    assert_eq!(bench.orders().await, 0);
}

#[tokio::test]
async fn a_branch_whose_session_is_lost_is_rolled_back() {
    let mut bench = Bench::start().await;
    let mut branch = bench.enlist().await;
    insert(&mut branch).await;
    bench.session.lose();
    let (session, _) = bench.coordinator.welcomed("0a1b2c3d", 1).await;
    bench.session = session;
    // The abort may be at work still; a prepare waits for it.
    bench.session.send([prepare_continued(TRANSACTION)]);
    assert_eq!(voted(bench.session.next().await).kind(), v1::VoteKind::No);
    assert!(matches!(branch.finish(), Err(EnlistError::Branch(_))));
    assert_eq!(bench.orders().await, 0);
}
