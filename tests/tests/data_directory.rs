//! The coordinator's directory: in use, exchanged, torn, altered, full, or on a disk that fails.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use unanimity_client::{Client, Error, Operation, Outcome, Reason};
use unanimity_proto::v1::{InDoubtKind, TransactionState};
use unanimity_tests::{
    bank::{Bank, INITIAL_BALANCE, committed, transfer},
    binaries,
    fake::Fake,
    held::Held,
    patience::{becomes, eventually},
    strace::Strace,
    system::{Agent, Coordinator, Scratch, Setup, ended},
};

/// Where the first frame of a segment begins.
const FIRST_FRAME: u64 = 64;

/// The smallest segment that may be configured.
const SEGMENT: &str = "--segment-bytes=1048576";

/// Two participants that say yes to everything.
async fn fakes(coordinator: &Coordinator) {
    for name in ["left", "right"] {
        Fake::open(&coordinator.address(), name).await.obey();
    }
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

/// A coordinator that was killed after so many commits, and their ids.
async fn killed_after(scratch: &Scratch, commits: usize) -> (Coordinator, Vec<String>) {
    let mut coordinator = Coordinator::start_with(Setup::new(scratch).with(&[SEGMENT])).await;
    fakes(&coordinator).await;
    let client = coordinator.client().await;
    let mut ids = Vec::new();
    for _ in 0..commits {
        ids.push(committed(submit(&client).await));
    }
    coordinator.process.kill();
    (coordinator, ids)
}

/// The segments, oldest first.
fn segments(data: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(data).expect("the coordinator made it");
    let mut segments: Vec<_> = files
        .map(|file| file.expect("it can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    segments.sort();
    segments
}

/// What is in the directory, but for the lock and the spare segment.
fn contents(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(data).expect("the coordinator made it");
    files
        .map(|file| file.expect("it can be listed").path())
        .filter(|path| !path.ends_with("lock") && !path.ends_with("next.wal.tmp"))
        .map(|path| (path.clone(), fs::read(&path).expect("it can be read")))
        .collect()
}

/// `unanimity log verify`.
fn verify(data: &Path) -> Output {
    let mut command = Command::new(binaries::path("unanimity"));
    command.args(["log", "verify"]).arg(data);
    command.output().expect("it can be run")
}

/// Flips one bit.
fn flip(segment: &Path, offset: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(segment)
        .expect("it is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)
        .expect("it is that long");
    byte[0] ^= 1;
    file.write_all_at(&byte, offset).expect("it is ours");
}

#[tokio::test]
async fn a_directory_in_use_is_refused_and_who_has_it_goes_on() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    fakes(&coordinator).await;
    let mut second = Setup::new(&scratch);
    second.output = scratch.path("second.log");
    let mut second = second.launch();
    assert_eq!(second.exit_code(), 73, "{}", second.log());
    let (said, owner) = (second.log(), coordinator.process.id().to_string());
    assert!(
        said.contains("in use") && said.contains(&owner),
        "names the process {owner}: {said}"
    );
    committed(submit(&coordinator.client().await).await);
}

#[tokio::test]
async fn another_log_touches_no_branch_of_the_first_and_shows_it() {
    let scratch = Scratch::new();
    let setup = Setup::new(&scratch).with(&["--scan-interval=100ms"]);
    let mut coordinator = Coordinator::start_with(setup).await;
    let lite = Bank::sqlite(&scratch, "lite").await;
    let lite_agent = Agent::start(&scratch, &coordinator, &lite).await;
    let mut held = Vec::new();
    for bank in [Bank::postgres("post").await, Bank::mariadb("maria").await] {
        let agent = Agent::start(&scratch, &coordinator, &bank).await;
        let client = coordinator.client().await;
        let transaction = Held::new(&coordinator, &client, &bank).await;
        let branch = transaction.gid(&bank).await;
        held.push((bank, agent, transaction, branch));
    }
    coordinator.process.kill();

    let first = coordinator.setup.data.clone();
    coordinator.setup.data = scratch.path("empty");
    coordinator.restart().await;
    for (bank, agent, ..) in &held {
        agent.connects(&coordinator).await;
        let foreign = eventually("the foreign branch", || async {
            let mut branches = coordinator.in_doubt().await.into_iter();
            branches.find(|branch| branch.participant == bank.name)
        })
        .await;
        assert_eq!(foreign.kind(), InDoubtKind::Foreign, "{foreign:?}");
    }
    // The participants are of use, and some ten scans leave alone what isn't theirs.
    let client = coordinator.client().await;
    lite_agent.connects(&coordinator).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for (bank, _, _, branch) in &held {
        committed(transfer(&client, "new", bank, &lite, 2, 5).submit().await);
        assert_eq!(bank.prepared("").await, std::slice::from_ref(branch));
        lite.execute("DELETE FROM entry").await;
    }

    coordinator.process.kill();
    coordinator.setup.data = first;
    coordinator.restart().await;
    for (bank, agent, ..) in &held {
        agent.connects(&coordinator).await;
        bank.has_prepared("", 0).await;
        assert_eq!(bank.balance(1).await, INITIAL_BALANCE, "{}", bank.name);
    }
    becomes("branches in doubt", 0, || async {
        coordinator.in_doubt().await.len()
    })
    .await;
}

#[tokio::test]
async fn an_old_copy_of_the_directory_is_noticed_before_it_decides_anything() {
    let scratch = Scratch::new();
    let mut coordinator = Coordinator::start(&scratch).await;
    let bank = Bank::postgres("post").await;
    let mut agent = Agent::start(&scratch, &coordinator, &bank).await;
    coordinator.process.kill();
    let newest = coordinator.setup.data.clone();
    let old = scratch.path("old-copy");
    copy(&newest, &old);

    // A branch votes, and its agent sleeps when it is to commit; perhaps it finds that in its mail later. The copy lacks what decides it.
    coordinator.restart().await;
    agent.connects(&coordinator).await;
    let client = coordinator.client().await;
    let mut held = Held::new(&coordinator, &client, &bank).await;
    agent.process.pause();
    held.decide().await;
    coordinator.process.kill();

    coordinator.setup.data = old;
    let mut copied = coordinator.setup.launch();
    agent.process.resume();
    assert_eq!(copied.exit_code(), 65, "{}", copied.log());
    assert!(copied.log().contains("old copy"), "{}", copied.log());

    coordinator.setup.data = newest;
    coordinator.restart().await;
    bank.has_prepared("", 0).await;
    assert_eq!(bank.balance(1).await, INITIAL_BALANCE - 5);
}

/// Copies the files of a directory.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("it is new");
    for file in fs::read_dir(from).expect("the coordinator made it") {
        let path = file.expect("it can be listed").path();
        let name = path.file_name().expect("a file has a name");
        fs::copy(&path, to.join(name)).expect("it can be copied");
    }
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_kept_and_every_outcome_that_was_told_stays() {
    let scratch = Scratch::new();
    let (mut coordinator, ids) = killed_after(&scratch, 5).await;
    let data = coordinator.setup.data.clone();
    let last = segments(&data).pop().expect("there is one");
    let bytes = fs::read(&last).expect("it can be read");
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("it has frames")
        + 1;
    let end = end.next_multiple_of(8) as u64;
    let file = fs::File::options()
        .write(true)
        .open(&last)
        .expect("it is there");
    file.write_all_at(&[0xA5; 40], end).expect("it is ours");

    coordinator.restart().await;
    fakes(&coordinator).await;
    for id in &ids {
        assert_eq!(
            ended(&coordinator, id).await.state(),
            TransactionState::Committed
        );
    }
    let aside: Vec<_> = contents(&data)
        .into_iter()
        .filter(|(path, _)| path.to_string_lossy().contains(".torn-"))
        .collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(aside[0].1, [0xA5; 40], "what was cut is kept");
    let said = coordinator.process.log();
    assert!(said.contains("torn"), "{said}");
    committed(submit(&coordinator.client().await).await);
}

#[tokio::test]
async fn a_flipped_bit_is_refused_with_its_place_and_nothing_is_changed() {
    let scratch = Scratch::new();
    let (mut coordinator, ids) = killed_after(&scratch, 5).await;
    let data = coordinator.setup.data.clone();
    let segment = segments(&data).remove(0);
    flip(&segment, FIRST_FRAME + 30);
    let before = contents(&data);

    let mut refused = coordinator.setup.launch();
    assert_eq!(refused.exit_code(), 65);
    let said = refused.log();
    let name = segment
        .file_name()
        .expect("it has one")
        .to_string_lossy()
        .into_owned();
    for words in [name.as_str(), "at byte 64", "LSN 1", "unanimity log verify"] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    assert!(contents(&data) == before, "refusing changes nothing");
    let verified = verify(&data);
    assert_eq!(verified.status.code(), Some(8), "{verified:?}");

    flip(&segment, FIRST_FRAME + 30);
    assert_eq!(verify(&data).status.code(), Some(0));
    coordinator.restart().await;
    fakes(&coordinator).await;
    for id in &ids {
        assert_eq!(
            ended(&coordinator, id).await.state(),
            TransactionState::Committed
        );
    }
}

/// A log with three segments, of a coordinator that was killed.
async fn several_segments(scratch: &Scratch) -> Coordinator {
    let setup = Setup::new(scratch).with(&[SEGMENT]);
    let mut coordinator = Coordinator::start_with(setup).await;
    fakes(&coordinator).await;
    let client = coordinator.client().await;
    // Long request ids fill a segment soon.
    let filler = "x".repeat(50);
    let mut number = 0_u64;
    while segments(&coordinator.setup.data).len() < 3 {
        let some = (0..64).map(|_| {
            number += 1;
            let anything = || [Operation::named("anything")];
            client
                .transaction()
                .request_id(format!("{filler}{number}"))
                .branch("left", anything())
                .branch("right", anything())
                .submit()
        });
        for outcome in futures_util::future::join_all(some).await {
            committed(outcome);
        }
        assert!(number < 1_000_000, "the log keeps less than three segments");
    }
    coordinator.process.kill();
    coordinator
}

#[tokio::test]
async fn a_missing_segment_is_refused_by_name() {
    let scratch = Scratch::new();
    let mut coordinator = several_segments(&scratch).await;
    let segments = segments(&coordinator.setup.data);
    let missing = &segments[segments.len() - 2];
    let aside = scratch.path("aside");
    fs::rename(missing, &aside).expect("it is ours");
    let mut refused = coordinator.setup.launch();
    assert_eq!(refused.exit_code(), 65);
    let said = refused.log();
    let follower = segments[segments.len() - 1].display().to_string();
    assert!(
        said.contains("missing") && said.contains(&follower),
        "{said}"
    );
    fs::rename(&aside, missing).expect("it is ours");
    coordinator.restart().await;
}

#[tokio::test]
async fn a_full_disk_refuses_what_is_new_and_frees_itself() {
    let scratch = Scratch::new();
    let mut setup = Setup::new(&scratch).with(&[SEGMENT]);
    fs::create_dir(&setup.data).expect("it is ours");
    // In a mount namespace of its own: what else is tested meanwhile doesn't see it.
    let mount = "mount -t tmpfs -o size=8m,mode=700 none \"$0\" && exec \"$@\"";
    let data = setup.data.display().to_string();
    let namespace = match rustix::process::geteuid().is_root() {
        true => "-m",
        false => "-mr",
    };
    setup.wrapper = ["unshare", namespace, "sh", "-c", mount, &data]
        .map(str::to_owned)
        .into();
    let coordinator = Coordinator::start_with(setup).await;
    fakes(&coordinator).await;
    let client = Client::builder(coordinator.address())
        .retry_for(Duration::ZERO)
        .build()
        .expect("a good address");
    let first = committed(submit(&client).await);

    let inside = format!("/proc/{}/root{data}/ballast", coordinator.process.id());
    // It ends with an error: the disk is full.
    let filled = fs::write(&inside, vec![1; 8 << 20]);
    assert_eq!(
        filled.expect_err("it is full").kind(),
        std::io::ErrorKind::StorageFull
    );
    let refused = eventually("a refusal", || async { submit(&client).await.err() }).await;
    assert_eq!(
        (refused.reason(), refused.is_retryable()),
        (&Reason::LogSpaceLow, true),
        "{refused:?}"
    );
    assert_eq!(
        coordinator.transaction(&first).await.state(),
        TransactionState::Committed
    );
    fs::remove_file(&inside).expect("it is ours");
    eventually("a commit", || async {
        submit(&client).await.ok()?.committed().ok()
    })
    .await;
}

#[tokio::test]
async fn a_failed_sync_ends_the_coordinator_and_the_disk_decides() {
    let scratch = Scratch::new();
    let banks = [
        Bank::sqlite(&scratch, "lite").await,
        Bank::postgres("post").await,
    ];
    let [lite, post] = &banks;
    let plain = Setup::new(&scratch);
    let mut coordinator = Coordinator::start_with(plain.clone()).await;
    let mut agents = Vec::new();
    for bank in &banks {
        agents.push(Agent::start(&scratch, &coordinator, bank).await);
    }
    let client = coordinator.client().await;
    committed(transfer(&client, "good", lite, post, 1, 5).submit().await);
    coordinator.process.kill();

    let strace = Strace::new(scratch.path("strace"));
    for first_failure in [1, 2] {
        let inject = format!("inject=fdatasync:error=EIO:when={first_failure}+");
        coordinator.process = plain.launch();
        coordinator.serves().await;
        for agent in &agents {
            agent.connects(&coordinator).await;
        }
        let mut failer = strace.attach(coordinator.process.id(), &["-e", &inject]);
        let mut lost = None;
        for number in 0..10 {
            let id = format!("{first_failure}.{number}");
            let client = Client::builder(coordinator.address())
                .retry_for(Duration::ZERO)
                .build()
                .expect("a good address");
            match transfer(&client, &id, lite, post, 2, 1).submit().await {
                Ok(Outcome::Committed(_)) => {}
                other => {
                    lost = Some((id, other));
                    break;
                }
            }
        }
        let (id, outcome) = lost.expect("a sync failed");
        assert_eq!(coordinator.process.exit_code(), 74);
        failer.wait();
        let Ok(Outcome::Unknown(unknown)) = outcome else {
            panic!("nobody can know yet: {outcome:?}")
        };
        let said = coordinator.process.log();
        assert!(said.contains("the log failed"), "{said}");

        coordinator.restart().await;
        let settled = unknown
            .settle(std::time::Instant::now() + Duration::from_secs(30))
            .await;
        let entries = match &settled {
            Outcome::Committed(_) => 1,
            Outcome::Aborted(_) => 0,
            other => panic!("it is settled: {other:?}"),
        };
        for bank in &banks {
            bank.has_prepared("u1.", 0).await;
            assert_eq!(
                bank.entries(&id).await,
                entries,
                "{}: {settled:?}",
                bank.name
            );
        }
        coordinator.process.kill();
    }
    assert_eq!(
        lite.total().await + post.total().await,
        40 * INITIAL_BALANCE
    );
}

#[tokio::test]
async fn what_was_undecided_when_the_coordinator_died_is_aborted_within_two_seconds_of_its_return()
{
    let scratch = Scratch::new();
    let mut coordinator = Coordinator::start(&scratch).await;
    let mut held = Vec::new();
    for bank in Bank::three(&scratch).await {
        let agent = Agent::start(&scratch, &coordinator, &bank).await;
        let client = coordinator.client().await;
        let transaction = Held::new(&coordinator, &client, &bank).await;
        held.push((bank, agent, transaction));
    }
    coordinator.kill_and_restart().await;
    let serving = std::time::Instant::now();
    for (bank, _, transaction) in &held {
        bank.has_prepared(&transaction.id, 0).await;
        assert!(
            serving.elapsed() < Duration::from_secs(2),
            "{}: after {:?}",
            bank.name,
            serving.elapsed()
        );
        assert_eq!(bank.balance(1).await, INITIAL_BALANCE);
    }
    for (_, _, transaction) in &held {
        assert_eq!(
            ended(&coordinator, &transaction.id).await.state(),
            TransactionState::Aborted
        );
    }
}
