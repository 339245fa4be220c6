//! What becomes of a coordinator on each kind of bad disk, and that the instruments say truly whether they hit it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use unanimity_chaos::disk::{Fault, Landing, SmallDisk, Victim, strike};
use unanimity_client::{Client, Error, Operation, Outcome, Reason};
use unanimity_tests::{
    fake::Fake,
    patience::eventually,
    system::{Coordinator, Scratch, Setup},
};

/// The code with which it ends when its log fails.
const LOG_FAILED: i32 = 74;
const LIMIT: Duration = Duration::from_secs(30);

/// A coordinator with two participants that say yes to everything.
async fn house(setup: Setup) -> (Coordinator, Client) {
    let coordinator = Coordinator::start_with(setup).await;
    for name in ["left", "right"] {
        Fake::open(&coordinator.address(), name).await.obey();
    }
    let client = Client::builder(coordinator.address())
        .retry_for(Duration::ZERO)
        .build()
        .unwrap();
    (coordinator, client)
}

async fn submit(client: &Client) -> Result<Outcome, Error> {
    let anything = || [Operation::named("anything")];
    client
        .transaction()
        .branch("left", anything())
        .branch("right", anything())
        .submit()
        .await
}

/// Submits until a transaction does not commit.
async fn submit_on(client: Client) -> Result<Outcome, Error> {
    loop {
        match submit(&client).await {
            Ok(Outcome::Committed(_)) => {}
            other => return other,
        }
    }
}

/// Nobody is told a commit or an abort whose record failed: only that it is not known.
async fn ends_without_a_word(fault: Fault) {
    let scratch = Scratch::new();
    let (mut coordinator, client) = house(Setup::new(&scratch)).await;
    let traffic = tokio::spawn(submit_on(client));
    let log = Victim::log(coordinator.process.id());
    let landing = strike(log, fault, &scratch.path("strace"), LIMIT).await;
    assert!(matches!(landing, Landing::Landed(1..)), "{landing:?}");
    let last = traffic.await.unwrap();
    // An error where it was gone already when the last one was sent: then nothing came of that.
    assert!(matches!(last, Ok(Outcome::Unknown(_)) | Err(_)), "{last:?}");
    assert_eq!(coordinator.process.exit_code(), LOG_FAILED);
}

#[tokio::test]
async fn a_sync_that_fails_once_ends_the_coordinator_without_a_word() {
    ends_without_a_word(Fault::SyncFails { nth: 3 }).await;
}

#[tokio::test]
async fn an_append_without_room_ends_the_coordinator_without_a_word() {
    ends_without_a_word(Fault::NoSpace { nth: 3 }).await;
}

#[tokio::test]
async fn a_sync_that_never_returns_ends_the_coordinator_after_twenty_seconds() {
    let began = Instant::now();
    ends_without_a_word(Fault::SyncHangs {
        nth: 1,
        hang: Duration::from_secs(60),
    })
    .await;
    assert!(began.elapsed() >= Duration::from_secs(20));
}

/// Commits one transaction after the other while the disk is hurt, and gives how long the longest took. None may fail.
async fn longest_commit(fault: Fault, limit: Duration) -> (Landing, Duration) {
    let scratch = Scratch::new();
    let (mut coordinator, client) = house(Setup::new(&scratch)).await;
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    let traffic = tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let outcome = submit(&client).await;
            assert!(matches!(outcome, Ok(Outcome::Committed(_))), "{outcome:?}");
            longest = longest.max(began.elapsed());
        }
        longest
    });
    let report = scratch.path("strace");
    let log = Victim::log(coordinator.process.id());
    let landing = strike(log, fault, &report, limit).await;
    over.store(true, Ordering::Relaxed);
    let longest = traffic.await.unwrap();
    assert!(coordinator.process.ended().is_none());
    (landing, longest)
}

#[tokio::test]
async fn a_sync_that_hangs_for_a_while_delays_the_answer_and_changes_nothing() {
    let hang = Duration::from_secs(3);
    let (landing, longest) = longest_commit(Fault::SyncHangs { nth: 2, hang }, LIMIT).await;
    assert_eq!(landing, Landing::Landed(1));
    assert!(longest >= hang);
}

#[tokio::test]
async fn a_slow_disk_slows_every_commit_and_fails_none() {
    let by = Duration::from_millis(200);
    let (landing, longest) = longest_commit(Fault::SyncSlow { by }, Duration::from_secs(2)).await;
    assert!(matches!(landing, Landing::Landed(3..)), "{landing:?}");
    assert!(longest >= by);
}

#[tokio::test]
async fn a_full_disk_refuses_what_is_new_until_there_is_room() {
    let scratch = Scratch::new();
    let mount = scratch.path("small");
    fs::create_dir(&mount).unwrap();
    let disk = SmallDisk::mount(&mount, 8 << 20).unwrap();
    let mut setup = Setup::new(&scratch).with(&["--segment-bytes=1048576"]);
    setup.data = disk.path().join("log");
    let (mut coordinator, client) = house(setup).await;
    assert!(matches!(submit(&client).await, Ok(Outcome::Committed(_))));
    assert!(disk.fill().unwrap() > 0);
    let refused = eventually("a refusal", || async { submit(&client).await.err() }).await;
    assert_eq!(refused.reason(), &Reason::LogSpaceLow);
    disk.free().unwrap();
    let again = eventually("a commit", || async { submit(&client).await.ok() }).await;
    assert!(matches!(again, Outcome::Committed(_)), "{again:?}");
    // The disk outlives the process.
    let log = coordinator.log_id().await;
    coordinator.kill_and_restart().await;
    assert_eq!(coordinator.log_id().await, log);
}

#[tokio::test]
async fn a_fault_that_hits_nothing_says_so() {
    let scratch = Scratch::new();
    let (mut coordinator, _client) = house(Setup::new(&scratch)).await;
    let report = scratch.path("strace");
    let limit = Duration::from_millis(1_500);
    let fault = Fault::SyncFails { nth: 100 };
    let log = Victim::log(coordinator.process.id());
    assert_eq!(strike(log, fault, &report, limit).await, Landing::Missed);
    assert!(coordinator.process.ended().is_none());
    coordinator.process.kill();
    let gone = strike(log, fault, &report, limit).await;
    assert!(matches!(gone, Landing::NotInstalled(_)), "{gone:?}");
}
