//! Coincidences that could cost money, one by one.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod bench;

use bench::*;
use unanimity_engine::{
    AbortCode, Begin, BranchKey, Completion, Downward, Effect, Event, Found, Input, Moment, Record,
    Refusal, Replay, RequestId, Resolution, Seq, SessionId, Settings, Submit, Ticket,
    TransactionId, TransactionState, Upward, Vote,
};

fn say(bench: &mut Bench, session: u64, message: Upward) {
    bench.give(Input::Message {
        session: SessionId(session),
        message,
    });
}
fn begin(
    bench: &mut Bench,
    ticket: u64,
    unique: u128,
    who: &[&str],
    request: Option<&str>,
) -> TransactionId {
    bench.give(Input::Begin(Begin {
        ticket: Ticket(ticket),
        unique,
        request_id: request.and_then(RequestId::parse),
        participants: who.iter().map(|p| name(p)).collect(),
        age_ms: 0,
        timeout_ms: 1_000,
        traceparent: String::new(),
    }));
    TransactionId {
        log: LOG,
        epoch: bench.engine.incarnation().epoch,
        unique,
    }
}
fn execute(bench: &mut Bench, ticket: u64, transaction: TransactionId, who: &str) {
    bench.give(Input::Execute {
        ticket: Ticket(ticket),
        transaction,
        participant: name(who),
        operation: b"o"[..].into(),
    });
}

#[test]
fn a_commit_of_one_branch_of_two_is_found_again_after_a_restart() {
    let mut bench = Bench::new();
    bench.open(1, "a", 8, true);
    bench.open(2, "b", 8, true);
    let id = begin(&mut bench, 1, 77, &["a", "b"], Some("order-1"));
    execute(&mut bench, 2, id, "b");
    bench.give(Input::Commit {
        ticket: Ticket(3),
        transaction: id,
        answer_decided: false,
    });
    let sent = bench.sent_to(2);
    assert!(
        matches!(sent.last(), Some(Downward::Prepare { key, one_phase: false, .. }) if key.branch == 2),
        "a look-up asks for the marker of branch 1: {sent:?}"
    );
    bench.vote(2, id, 2, yes());
    bench.sync();
    bench.complete(2, id, 2, Completion::Committed);
    assert_eq!(bench.told(3), Some(TransactionState::Committed));
    let mut bench = bench.restart();
    bench.give(Input::Lookup {
        ticket: Ticket(20),
        transaction: id,
    });
    assert!(matches!(
        bench.told(20),
        Some(TransactionState::Committing | TransactionState::Committed)
    ));
}

#[test]
fn a_commit_proved_again_after_it_was_forgotten_raises_no_alarm() {
    let settings = Settings {
        retention_ms: 1_000,
        ..Settings::default()
    };
    let mut bench = Bench::with(Vec::new(), settings);
    bench.open(1, "a", 8, false);
    bench.open(2, "b", 8, false);
    let id = bench.submit(1, &["a", "b"]);
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    bench.sync();
    bench.complete(1, id, 1, Completion::Committed);
    bench.complete(2, id, 2, Completion::Committed);
    bench.now = Moment(2_000);
    bench.give(Input::Tick);
    assert!(bench.engine.transaction(&id).is_none(), "forgotten");
    let key = |transaction: TransactionId| BranchKey {
        transaction,
        branch: 1,
    };
    let mut alarms = |transaction: TransactionId| {
        bench.engine.handle(
            bench.now,
            Input::Message {
                session: SessionId(1),
                message: Upward::Completion {
                    key: key(transaction),
                    completion: Completion::Committed,
                },
            },
        );
        let effects = std::iter::from_fn(|| bench.engine.poll_effect());
        let alarm = |e: &Effect| matches!(e, Effect::Report(Event::Heuristic { .. }));
        effects.filter(alarm).count()
    };
    assert_eq!(alarms(id), 0);
    let never = TransactionId {
        unique: id.unique + 1,
        ..id
    };
    assert_eq!(alarms(never), 1, "that one never was decided to commit");
}

#[test]
fn a_request_that_may_have_committed_and_been_forgotten_does_not_run_again() {
    let settings = Settings {
        retention_ms: 1_000,
        ..Settings::default()
    };
    let mut bench = Bench::with(Vec::new(), settings);
    bench.open(1, "a", 8, false);
    bench.open(2, "b", 8, false);
    // Ids are minted at the ticket's number, in milliseconds.
    let id = bench.submit_as(100_000, &["a", "b"], Some("payment"));
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    bench.sync();
    bench.complete(1, id, 1, Completion::Committed);
    bench.complete(2, id, 2, Completion::Committed);
    bench.now = Moment(2_000);
    bench.give(Input::Tick);
    assert!(bench.engine.transaction(&id).is_none(), "forgotten");
    bench.sent.clear();
    let repeat = |bench: &mut Bench, ticket: u64, age_ms: u64| {
        bench.give(Input::Submit(Submit {
            ticket: Ticket(ticket),
            unique: u128::from(ticket) << 80,
            request_id: RequestId::parse("payment"),
            fingerprint: 2,
            branches: vec![(name("a"), b"w"[..].into()), (name("b"), b"w"[..].into())],
            age_ms,
            timeout_ms: 1_000,
            answer_decided: false,
            traceparent: String::new(),
        }));
    };
    repeat(&mut bench, 200_000, 100_000);
    assert!(
        matches!(bench.refused(200_000), Some(Refusal::RequestIdForgotten(_))),
        "{:?}",
        bench.answers.last()
    );
    assert!(bench.sent_to(1).is_empty());
    // One that was first sent later than anything that was forgotten can only be new.
    repeat(&mut bench, 300_000, 100_000);
    assert_eq!(bench.sent_to(1).len(), 1);
}

#[test]
fn a_checkpoint_that_fills_a_segment_by_itself_starts_no_other() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    bench.sync();
    bench.give(Input::Checkpoint);
    let written = bench.log.len();
    bench.give(Input::Checkpoint);
    assert_eq!(bench.log.len(), written, "the first is not durable yet");
    bench.sync();
    assert!(bench.trimmed.take().is_some());
    bench.give(Input::Checkpoint);
    bench.sync();
    assert!(bench.trimmed.is_some(), "after it there is another one");
}

#[test]
fn a_branch_that_another_participants_database_lists_is_left_to_its_own() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    bench.sync();
    bench.sent.clear();
    let key = BranchKey {
        transaction: id,
        branch: 1,
    };
    // XA RECOVER is server wide: b's agent lists a's branch too.
    say(
        &mut bench,
        2,
        Upward::InDoubt(vec![Found {
            identifier: key.to_string(),
            key: Some(key),
        }]),
    );
    let sent = bench.sent_to(2);
    assert!(
        !sent.iter().any(|m| matches!(m, Downward::Abort { .. })),
        "{sent:?}"
    );
}

#[test]
fn a_look_up_does_not_hang_where_the_session_that_was_asked_is_lost() {
    let mut bench = two();
    bench.open(3, "c", 8, true);
    let id = bench.submit(1, &["c"]);
    let mut bench = bench.restart();
    bench.open(4, "c", 8, true);
    bench.open(5, "c", 8, true);
    bench.give(Input::Lookup {
        ticket: Ticket(20),
        transaction: id,
    });
    assert_eq!(bench.sent_to(4).len(), 1);
    bench.give(Input::SessionClosed(SessionId(4)));
    for _ in 0..100 {
        bench.now = Moment(bench.now.0 + 60_000);
        bench.give(Input::Tick);
    }
    bench.give(Input::Lookup {
        ticket: Ticket(21),
        transaction: id,
    });
    let asked = bench.sent_to(5);
    assert!(
        bench.refused(20).is_some() || bench.told(20).is_some() || !asked.is_empty(),
        "no answer, no question: it waits for ever"
    );
}

#[test]
fn a_look_up_and_a_repeated_request_may_find_the_same_commit() {
    let mut bench = Bench::new();
    bench.open(3, "c", 8, true);
    let first = bench.submit_as(1, &["c"], Some("r"));
    let mut bench = bench.restart();
    bench.open(4, "c", 8, true);
    bench.give(Input::Lookup {
        ticket: Ticket(20),
        transaction: first,
    });
    let second = bench.submit_as(21, &["c"], Some("r"));
    bench.vote(4, second, 1, Vote::Duplicate(first));
    say(
        &mut bench,
        4,
        Upward::Proof {
            key: BranchKey {
                transaction: first,
                branch: 1,
            },
            completion: Completion::Committed,
        },
    );
    assert_eq!(bench.engine.in_flight(), 0);
}

#[test]
fn a_repeated_request_hears_of_the_abort_at_once() {
    let mut bench = two();
    let id = bench.submit_as(1, &["a", "b"], Some("r"));
    bench.vote(2, id, 2, yes());
    bench.give(Input::SessionClosed(SessionId(2)));
    bench.vote(1, id, 1, Vote::No(no(AbortCode::Refused)));
    assert_eq!(bench.told(1), Some(TransactionState::Aborting));
    bench.submit_as(2, &["a", "b"], Some("r"));
    assert_eq!(bench.told(2), Some(TransactionState::Aborting));
}

#[test]
fn a_late_branch_of_a_heuristic_abort_is_aborted() {
    let mut bench = Bench::new();
    for (s, p) in [(1, "a"), (2, "b"), (3, "c")] {
        bench.open(s, p, 8, false);
    }
    let id = bench.submit(1, &["a", "b", "c"]);
    bench.vote(1, id, 1, yes());
    bench.give(Input::SessionClosed(SessionId(2))); // b's prepare still runs
    bench.complete(1, id, 1, Completion::Committed); // by hand
    bench.complete(3, id, 3, Completion::Aborted);
    assert_eq!(
        bench.engine.transaction(&id).unwrap().state,
        TransactionState::Heuristic
    );
    let key = BranchKey {
        transaction: id,
        branch: 2,
    };
    let mut hello = opened(4, "b", 8, false);
    hello.in_doubt = vec![Found {
        identifier: key.to_string(),
        key: Some(key),
    }];
    bench.give(Input::SessionOpened(hello));
    bench.sync();
    let sent = bench.sent_to(4);
    assert!(matches!(sent[..], [Downward::Abort { .. }]), "{sent:?}");
}

#[test]
fn a_lost_branch_that_is_found_again_commits_however_late() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    bench.sync();
    bench.complete(1, id, 1, Completion::Committed);
    bench.complete(2, id, 2, Completion::Lost("standby without it".into()));
    bench.sent.clear();
    let key = BranchKey {
        transaction: id,
        branch: 2,
    };
    let found = || {
        Upward::InDoubt(vec![Found {
            identifier: key.to_string(),
            key: Some(key),
        }])
    };
    say(&mut bench, 2, found());
    let while_remembered = bench.sent_to(2);
    bench.now = Moment(3_600_001);
    bench.give(Input::Tick);
    say(&mut bench, 2, found());
    let after = bench.sent_to(2);
    assert!(
        !after.iter().any(|m| matches!(m, Downward::Abort { .. })),
        "remembered: {while_remembered:?}, later: {after:?}"
    );
}

#[test]
fn a_commit_that_is_forgotten_while_a_checkpoint_runs_is_not_presumed_aborted() {
    let settings = Settings {
        retention_ms: 1_000,
        ..Settings::default()
    };
    let mut bench = Bench::with(Vec::new(), settings);
    bench.open(1, "a", 10_000, false);
    bench.open(2, "b", 10_000, true);
    let mut last = None;
    for ticket in 1..=600 {
        let id = bench.submit(ticket, &["a"]);
        bench.vote(1, id, 1, yes());
        bench.sync();
        bench.complete(1, id, 1, Completion::Committed);
        last = Some(id);
    }
    let id = last.unwrap();
    bench.sync();
    bench.now = Moment(999);
    bench.give(Input::Checkpoint); // first 256 carried
    bench.now = Moment(1_001);
    for _ in 0..5 {
        bench.give(Input::Tick);
    }
    bench.sync();
    let keep = bench.trimmed.expect("whole");
    let mut replay = Replay::new();
    for record in &bench.log[keep.0 as usize - 1..] {
        replay.apply(record.clone());
    }
    let engine = replay.start(
        LOG,
        settings,
        start(Seq(bench.log.len() as u64 + 1), Moment(0)),
    );
    let mut bench = Bench { engine, ..bench };
    bench.drain();
    bench.sync();
    bench.open(12, "b", 8, true);
    bench.give(Input::Lookup {
        ticket: Ticket(9_999),
        transaction: id,
    });
    for message in bench.sent_to(12) {
        if let Downward::Prove { key } = message {
            say(
                &mut bench,
                12,
                Upward::Proof {
                    key,
                    completion: Completion::Aborted,
                },
            );
        }
    }
    assert_ne!(
        bench.told(9_999),
        Some(TransactionState::Aborted),
        "it committed"
    );
}

#[test]
fn aborts_do_not_push_a_commit_under_a_request_id_out_of_memory() {
    let settings = Settings {
        max_remembered: 1_000,
        ..Settings::default()
    };
    let mut bench = Bench::with(Vec::new(), settings);
    bench.open(1, "a", 8, false);
    bench.open(2, "b", 8, false);
    let id = bench.submit_as(1, &["a", "b"], Some("payment-1"));
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    bench.sync();
    bench.complete(1, id, 1, Completion::Committed);
    bench.complete(2, id, 2, Completion::Committed);
    assert_eq!(bench.told(1), Some(TransactionState::Committed));
    for ticket in 10..1_020 {
        let other = bench.submit(ticket, &["a"]);
        bench.vote(1, other, 1, Vote::No(no(AbortCode::Refused)));
    }
    bench.sent.clear();
    bench.now = Moment(5_000);
    bench.submit_as(5_000, &["a", "b"], Some("payment-1"));
    assert!(
        bench.sent_to(1).is_empty(),
        "the payment runs a second time, 5 s after the first"
    );
}

#[test]
fn an_operation_that_fails_after_the_vote_changes_nothing() {
    let mut bench = two();
    let id = begin(&mut bench, 1, 77, &["a", "b"], None);
    execute(&mut bench, 2, id, "a");
    execute(&mut bench, 3, id, "b");
    bench.give(Input::Commit {
        ticket: Ticket(4),
        transaction: id,
        answer_decided: false,
    });
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    say(
        &mut bench,
        1,
        Upward::Executed {
            key: BranchKey {
                transaction: id,
                branch: 1,
            },
            sequence: 1,
            result: Err(no(AbortCode::Timeout)),
        },
    );
    bench.sent.clear();
    bench.sync();
    let sent = bench.sent_to(1);
    assert!(
        matches!(sent[..], [Downward::Commit { .. }]),
        "a voted yes and is decided to commit: {sent:?}"
    );
}

#[test]
fn two_databases_under_one_new_name_are_told_apart_before_either_is_welcome() {
    let mut bench = Bench::new();
    let mut other = opened(2, "a", 8, false);
    other.resource = "another database".into();
    bench.give(Input::SessionOpened(opened(1, "a", 8, false)));
    bench.give(Input::SessionOpened(other));
    bench.sync();
    assert!(!bench.closed.is_empty());
}

#[test]
fn a_decision_waits_for_the_database_that_voted() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    bench.give(Input::SessionClosed(SessionId(2)));
    bench.sync();
    let mut other = opened(9, "b", 8, false);
    other.resource = "another database".into();
    bench.give(Input::SessionOpened(other));
    let sent = bench.sent_to(9);
    assert!(sent.is_empty(), "{sent:?}");
}

#[test]
fn a_proof_that_came_before_the_operators_word_was_durable_counts_after_a_restart_too() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    bench.sync();
    bench.complete(1, id, 1, Completion::Committed);
    let branch = BranchKey {
        transaction: id,
        branch: 2,
    };
    bench.give(Input::Resolve {
        ticket: Ticket(2),
        branch,
        resolution: Resolution::Aborted,
        reason: "disk burnt".into(),
    });
    bench.complete(2, id, 2, Completion::Committed); // before the record is durable: the proof counts
    bench.sync();
    assert_eq!(
        (bench.told(1), bench.told(2)),
        (
            Some(TransactionState::Committed),
            Some(TransactionState::Committed)
        )
    );
    let bench = bench.restart();
    assert_eq!(
        bench.engine.transaction(&id).unwrap().state,
        TransactionState::Committed
    );
}

#[test]
fn of_two_words_of_operators_the_same_one_counts_after_a_restart() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    bench.sync();
    bench.complete(1, id, 1, Completion::Committed);
    let branch = BranchKey {
        transaction: id,
        branch: 2,
    };
    for (ticket, resolution) in [(2, Resolution::Committed), (3, Resolution::Aborted)] {
        bench.give(Input::Resolve {
            ticket: Ticket(ticket),
            branch,
            resolution,
            reason: "disk burnt".into(),
        });
    }
    bench.sync();
    bench.sync();
    let before = bench.engine.transaction(&id).unwrap().state;
    let bench = bench.restart();
    assert_eq!(bench.engine.transaction(&id).unwrap().state, before);
}

#[test]
fn a_checkpoint_carries_a_registration_under_way() {
    let mut bench = Bench::new();
    bench.give(Input::SessionOpened(opened(1, "a", 8, true)));
    bench.give(Input::Checkpoint);
    bench.sync();
    let keep = bench.trimmed.unwrap();
    let mut replay = Replay::new();
    for record in &bench.log[keep.0 as usize - 1..] {
        replay.apply(record.clone());
    }
    assert_eq!(
        replay
            .start(LOG, Settings::default(), start(Seq(99), Moment(0)))
            .participants()
            .len(),
        1
    );
}

#[test]
fn calls_that_were_left_behind_do_not_pile_up() {
    // GetTransaction is answered at once, but a retried submit waits: nothing takes its ticket out again.
    let mut bench = two();
    let id = bench.submit_as(1, &["a", "b"], Some("r"));
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    bench.give(Input::SessionClosed(SessionId(2)));
    bench.sync();
    for t in 10..1_010 {
        bench.submit_as(t, &["a", "b"], Some("r"));
    }
    let text = format!("{:?}", bench.engine);
    assert!(
        text.matches("Ticket(").count() <= 64,
        "{}",
        text.matches("Ticket(").count()
    );
}

#[test]
fn a_checkpoint_carries_an_operators_word_that_is_on_its_way_to_the_disk() {
    let mut bench = two();
    let id = bench.submit(10, &["a", "b"]);
    for (session, branch) in [(1, 1), (2, 2)] {
        bench.vote(session, id, branch, yes());
    }
    bench.sync();
    bench.complete(2, id, 2, Completion::Committed);
    let branch = BranchKey {
        transaction: id,
        branch: 1,
    };
    bench.give(Input::Resolve {
        ticket: Ticket(11),
        branch,
        resolution: unanimity_engine::Resolution::Aborted,
        reason: "rolled back by hand".into(),
    });
    bench.give(Input::Checkpoint);
    while bench.engine.next_deadline() == Some(bench.now) && bench.trimmed.is_none() {
        bench.give(Input::Tick);
        bench.sync();
    }
    bench.sync();
    assert_eq!(bench.told(11), Some(TransactionState::Heuristic));
    // The end of the transaction was not synced, and what stands before the checkpoint is gone.
    let begin = bench.trimmed.expect("a whole checkpoint").0 as usize - 1;
    let end = |record: &Record| matches!(record, Record::End { .. });
    let mut replay = Replay::new();
    let kept = bench.log[begin..].iter().filter(|record| !end(record));
    kept.cloned().for_each(|record| replay.apply(record));
    let next = Seq(bench.log.len() as u64 + 1);
    let engine = replay.start(LOG, Settings::default(), start(next, Moment(0)));
    let branches = engine.transaction(&id).expect("it is carried").branches;
    let resolved = branches.iter().find(|b| b.number == 1);
    assert_eq!(
        resolved.map(|b| b.state),
        Some(unanimity_engine::BranchState::HeuristicAborted)
    );
}
