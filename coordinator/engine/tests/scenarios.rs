//! One behaviour at a time, by hand.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod bench;

use bench::*;
use unanimity_engine::{
    AbortCode, Answer, Begin, BranchKey, BranchState, Completion, DecidedBranch, Decision,
    Downward, Epoch, Found, InDoubtKind, Incarnation, Input, LogId, LogPosition, Moment, Record,
    Refusal, Replay, RequestId, Resolution, Seq, SessionId, Settings, Submit, Ticket,
    TransactionId, TransactionState, Upward, Vote,
};

#[test]
fn a_commit_is_sent_and_told_only_once_its_record_is_durable() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    assert!(matches!(
        bench.sent_to(1)[..],
        [Downward::Prepare {
            one_phase: false,
            ..
        }]
    ));
    assert!(matches!(bench.sent_to(2)[..], [Downward::Prepare { .. }]));
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    assert!(
        matches!(bench.log.last(), Some(Record::Commit(decision)) if decision.branches.len() == 2)
    );
    assert!(
        bench.sent.is_empty() && bench.answers.is_empty(),
        "nothing leaves before the record is durable"
    );
    assert_eq!(
        bench.engine.transaction(&id).unwrap().state,
        TransactionState::Preparing
    );
    bench.sync();
    assert!(matches!(&bench.sent_to(1)[..], [Downward::Commit { proof, .. }] if proof == "42"));
    assert_eq!(bench.told(1), None);
    bench.complete(1, id, 1, Completion::Committed);
    bench.complete(2, id, 2, Completion::Committed);
    assert_eq!(bench.told(1), Some(TransactionState::Committed));
    assert_eq!(bench.forced, 1);
}

#[test]
fn nothing_is_forced_for_an_aborted_a_read_only_or_a_one_phase_transaction() {
    let mut bench = two();
    bench.open(3, "c", 8, true);
    bench.forced = 0;
    let aborted = bench.submit(1, &["a", "b"]);
    bench.vote(1, aborted, 1, Vote::No(no(AbortCode::Refused)));
    assert_eq!(
        bench.told(1),
        Some(TransactionState::Aborting),
        "told at once: abort is never taken back"
    );
    bench.vote(2, aborted, 2, yes());
    bench.complete(2, aborted, 2, Completion::Aborted);
    let read = bench.submit(2, &["a", "b"]);
    bench.vote(1, read, 1, Vote::ReadOnly);
    bench.vote(2, read, 2, Vote::ReadOnly);
    let single = bench.submit(3, &["c"]);
    assert!(matches!(
        bench.sent_to(3)[..],
        [Downward::Prepare {
            one_phase: true,
            ..
        }]
    ));
    bench.vote(3, single, 1, Vote::Committed);
    assert_eq!(
        (bench.told(2), bench.told(3)),
        (
            Some(TransactionState::Committed),
            Some(TransactionState::Committed)
        )
    );
    assert_eq!(
        bench.engine.transaction(&aborted).unwrap().state,
        TransactionState::Aborted
    );
    assert_eq!((bench.forced, bench.engine.in_flight()), (0, 0));
}

#[test]
fn a_branch_alone_gets_two_phases_where_its_participant_can_not_prove_one() {
    let mut bench = two();
    bench.submit(1, &["a"]);
    assert!(matches!(
        bench.sent_to(1)[..],
        [Downward::Prepare {
            one_phase: false,
            ..
        }]
    ));
}

#[test]
fn a_read_only_branch_gets_no_second_phase() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    bench.sent.clear();
    bench.vote(1, id, 1, Vote::ReadOnly);
    bench.vote(2, id, 2, yes());
    bench.sync();
    assert!(bench.sent_to(1).is_empty());
    assert_eq!(bench.sent_to(2).len(), 1);
}

#[test]
fn abort_wins_when_a_vote_times_out() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    bench.sent.clear();
    bench.vote(1, id, 1, yes());
    bench.now = Moment(1_001);
    bench.give(Input::Tick);
    let view = bench.engine.transaction(&id).unwrap();
    assert_eq!(
        view.abort_reason.map(|r| (r.code, r.message.contains('b'))),
        Some((AbortCode::Timeout, true))
    );
    assert!(matches!(bench.sent_to(1)[..], [Downward::Abort { .. }]));
    bench.vote(2, id, 2, yes());
    bench.sync();
    assert_eq!(
        bench.engine.transaction(&id).unwrap().state,
        TransactionState::Aborting,
        "a late yes changes nothing"
    );
}

#[test]
fn a_decision_outlives_sessions_and_restarts() {
    let mut bench = two();
    let id = bench.submit_as(1, &["a", "b"], Some("order-1"));
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    bench.sync();
    bench.complete(1, id, 1, Completion::Committed);
    let mut bench = bench.restart();
    assert_eq!(bench.engine.incarnation().epoch, Epoch(2));
    bench.open(7, "b", 8, false);
    assert!(matches!(bench.sent_to(7)[..], [Downward::Commit { .. }]));
    bench.complete(7, id, 2, Completion::Retry("database is away".into()));
    assert!(bench.sent_to(7).is_empty());
    bench.now = bench.engine.next_deadline().unwrap();
    bench.give(Input::Tick);
    assert!(matches!(bench.sent_to(7)[..], [Downward::Commit { .. }]));
    bench.complete(7, id, 2, Completion::Committed);
    bench.open(8, "a", 8, false);
    bench.complete(8, id, 1, Completion::Committed);
    bench.submit_as(9, &["a", "b"], Some("order-1"));
    assert_eq!(
        bench.told(9),
        Some(TransactionState::Committed),
        "the request id committed once"
    );
    bench.submit_as(10, &["a"], Some("order-1"));
    assert!(matches!(
        bench.refused(10),
        Some(Refusal::RequestIdReused(_))
    ));
}

#[test]
fn abort_is_presumed_only_for_what_is_ours() {
    let mut bench = two();
    let ours = TransactionId {
        log: LOG,
        epoch: Epoch(1),
        unique: 5,
    };
    let foreign = TransactionId {
        log: LogId(2),
        ..ours
    };
    let newer = TransactionId {
        epoch: Epoch(9),
        ..ours
    };
    let found = [ours, foreign, newer].map(|transaction| {
        let key = BranchKey {
            transaction,
            branch: 1,
        };
        Found {
            identifier: key.to_string(),
            key: Some(key),
        }
    });
    let mut hello = opened(3, "c", 8, false);
    hello.in_doubt = found.to_vec();
    hello.in_doubt.push(Found {
        identifier: "someone-elses".into(),
        key: None,
    });
    bench.give(Input::SessionOpened(hello));
    bench.sync();
    let told = bench.sent_to(3);
    assert!(matches!(told[..], [Downward::Abort { key, .. }] if key.transaction == ours));
    let kinds: Vec<_> = bench
        .engine
        .in_doubt()
        .into_iter()
        .map(|v| v.kind)
        .collect();
    assert_eq!(
        kinds.iter().filter(|k| **k == InDoubtKind::Foreign).count(),
        2
    );
    assert_eq!(
        kinds
            .iter()
            .filter(|k| **k == InDoubtKind::NewerEpoch)
            .count(),
        1
    );
}

#[test]
fn an_old_copy_of_the_log_stops_before_it_presumes_anything() {
    let check = |change: fn(&mut LogPosition), halts: bool| {
        let mut bench = two().restart();
        let Incarnation {
            log,
            epoch,
            instance,
        } = bench.engine.incarnation();
        let mut seen = LogPosition {
            log,
            epoch,
            seq: bench.engine.durable(),
            instance,
        };
        change(&mut seen);
        let transaction = TransactionId {
            log,
            epoch: Epoch(1),
            unique: 5,
        };
        let key = BranchKey {
            transaction,
            branch: 1,
        };
        let mut hello = opened(3, "a", 8, false);
        hello.seen = vec![seen];
        hello.in_doubt = vec![Found {
            identifier: key.to_string(),
            key: Some(key),
        }];
        bench.give(Input::SessionOpened(hello));
        bench.sync();
        assert_eq!(bench.halted, halts, "{seen:?}");
        assert_eq!(bench.sent_to(3).is_empty(), halts, "{seen:?}");
    };
    // The log has four records: two epochs, and two participants in the first of them.
    check(|_| {}, false);
    check(|seen| seen.seq.0 += 1, true);
    check(|seen| seen.epoch.0 += 1, true);
    check(|seen| seen.instance ^= 1, true);
    check(|seen| (seen.epoch, seen.seq) = (Epoch(1), Seq(3)), false);
    check(|seen| (seen.epoch, seen.seq) = (Epoch(1), Seq(4)), true);
    check(|seen| (seen.log.0, seen.seq) = (9, Seq(90)), false);
}

#[test]
fn a_branch_rolled_back_by_hand_is_reported_and_never_hidden() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    bench.sync();
    bench.complete(1, id, 1, Completion::Aborted);
    bench.complete(2, id, 2, Completion::Committed);
    assert_eq!(bench.told(1), Some(TransactionState::Heuristic));
    bench.sync();
    let bench = bench.restart();
    let view = bench.engine.transaction(&id).unwrap();
    assert_eq!(
        (view.state, view.branches[0].state),
        (TransactionState::Heuristic, BranchState::HeuristicAborted)
    );
}

#[test]
fn a_branch_that_voted_yes_is_asked_how_it_ended_even_where_the_abort_found_nobody() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    bench.vote(2, id, 2, yes());
    bench.give(Input::SessionClosed(SessionId(2)));
    bench.vote(1, id, 1, Vote::No(no(AbortCode::Refused)));
    assert_eq!(
        bench.told(1),
        Some(TransactionState::Aborting),
        "the client need not wait for b"
    );
    bench.open(3, "b", 8, false);
    let sent = bench.sent_to(3);
    assert!(
        matches!(&sent[..], [Downward::Abort { proof, .. }] if proof == "42"),
        "{sent:?}"
    );
    bench.complete(3, id, 2, Completion::Committed);
    let view = bench.engine.transaction(&id).unwrap();
    assert_eq!(
        (view.state, view.branches[1].state),
        (TransactionState::Heuristic, BranchState::HeuristicCommitted)
    );
}

#[test]
fn an_operator_settles_one_branch_and_the_decision_stays() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    bench.vote(1, id, 1, yes());
    let key = BranchKey {
        transaction: id,
        branch: 2,
    };
    let resolve = |ticket, resolution| Input::Resolve {
        ticket: Ticket(ticket),
        branch: key,
        resolution,
        reason: "disk burnt".into(),
    };
    bench.give(resolve(2, Resolution::Aborted));
    assert!(
        matches!(bench.refused(2), Some(Refusal::BranchNotInDoubt(_))),
        "not before the decision"
    );
    bench.vote(2, id, 2, yes());
    bench.sync();
    bench.complete(1, id, 1, Completion::Committed);
    bench.give(resolve(3, Resolution::Aborted));
    assert_eq!(bench.told(3), None, "not before it is durable");
    bench.sync();
    assert_eq!(
        (bench.told(3), bench.told(1)),
        (
            Some(TransactionState::Heuristic),
            Some(TransactionState::Heuristic)
        )
    );
    bench.give(Input::Abort {
        ticket: Ticket(4),
        transaction: id,
        reason: no(AbortCode::Client),
    });
    assert!(matches!(
        bench.refused(4),
        Some(Refusal::TransactionDecided(_))
    ));
}

#[test]
fn an_abort_that_comes_while_the_decision_is_on_its_way_is_answered_with_it() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    let abort = |ticket: u64| Input::Abort {
        ticket: Ticket(ticket),
        transaction: id,
        reason: no(AbortCode::Client),
    };
    bench.give(abort(2));
    assert_eq!(
        (bench.told(2), bench.refused(2)),
        (None, None),
        "a crash now may lose the record, and then it aborts"
    );
    bench.sync();
    let too_late =
        |refusal: Option<&Refusal>| matches!(refusal, Some(Refusal::TransactionDecided(_)));
    assert!(too_late(bench.refused(2)));
    bench.give(abort(3));
    assert!(too_late(bench.refused(3)), "now it is decided");
}

#[test]
fn an_abort_of_a_one_phase_commit_is_answered_with_what_became_of_it() {
    for (vote, commits) in [
        (Vote::Committed, true),
        (Vote::No(no(AbortCode::Refused)), false),
    ] {
        let mut bench = Bench::new();
        bench.open(1, "a", 1, true);
        let id = bench.submit(1, &["a"]);
        bench.give(Input::Abort {
            ticket: Ticket(2),
            transaction: id,
            reason: no(AbortCode::Client),
        });
        assert_eq!((bench.told(2), bench.refused(2)), (None, None));
        bench.vote(1, id, 1, vote);
        let refused = matches!(bench.refused(2), Some(Refusal::TransactionDecided(_)));
        let aborted = bench.told(2) == Some(TransactionState::Aborting)
            || bench.told(2) == Some(TransactionState::Aborted);
        assert_eq!((refused, aborted), (commits, !commits));
    }
}

#[test]
fn slots_are_granted_together_and_a_full_participant_delays_only_those_who_need_it() {
    let mut bench = Bench::new();
    bench.open(1, "a", 1, false);
    bench.open(2, "b", 1, false);
    let first = bench.submit(1, &["a"]);
    bench.submit(2, &["a", "b"]);
    bench.submit(3, &["b"]);
    assert_eq!(bench.sent_to(1).len(), 1);
    assert!(
        matches!(bench.sent_to(2)[..], [Downward::Prepare { key, .. }] if key.transaction.unique == 3 << 80)
    );
    bench.vote(1, first, 1, Vote::ReadOnly);
    assert!(
        bench.sent_to(1).is_empty(),
        "the second holds nothing while b is full"
    );
    bench.vote(
        2,
        TransactionId {
            unique: 3 << 80,
            ..first
        },
        1,
        Vote::ReadOnly,
    );
    assert_eq!((bench.sent_to(1).len(), bench.sent_to(2).len()), (1, 1));
}

#[test]
fn nobody_starves_behind_those_who_need_less() {
    let mut bench = Bench::new();
    bench.open(1, "a", 1, false);
    bench.open(2, "b", 1, false);
    bench.submit(1, &["a"]);
    bench.submit(2, &["b"]);
    bench.submit(3, &["a", "b"]);
    let mut ticket = 10;
    let mut running = vec![(1, 1u64), (2, 2)];
    for _ in 0..200 {
        let (session, current) = running.remove(0);
        ticket += 1;
        bench.submit(ticket, &[if session == 1 { "a" } else { "b" }]);
        let id = TransactionId {
            log: LOG,
            epoch: Epoch(1),
            unique: u128::from(current) << 80,
        };
        bench.vote(session, id, 1, Vote::ReadOnly);
        for message in bench.sent_to(session) {
            let Downward::Prepare { key, .. } = message else {
                continue;
            };
            if key.transaction.unique == 3 << 80 {
                return;
            }
            running.push((session, (key.transaction.unique >> 80) as u64));
        }
        if running.is_empty() {
            break;
        }
    }
    panic!("the third never got its two slots");
}

#[test]
fn a_lost_session_before_its_vote_aborts_and_after_it_does_not() {
    let mut bench = two();
    let early = bench.submit(1, &["a", "b"]);
    bench.give(Input::SessionClosed(SessionId(2)));
    assert_eq!(
        bench
            .engine
            .transaction(&early)
            .unwrap()
            .abort_reason
            .unwrap()
            .code,
        AbortCode::ParticipantUnavailable
    );
    bench.open(3, "b", 8, false);
    let late = bench.submit(2, &["a", "b"]);
    bench.vote(3, late, 2, yes());
    bench.give(Input::SessionClosed(SessionId(3)));
    bench.vote(1, late, 1, yes());
    bench.sync();
    bench.open(4, "b", 8, false);
    assert!(matches!(bench.sent_to(4)[..], [Downward::Commit { .. }]));
}

#[test]
fn a_one_phase_branch_whose_session_is_lost_must_prove_its_outcome() {
    let mut bench = two();
    bench.open(3, "c", 8, true);
    let id = bench.submit(1, &["c"]);
    bench.give(Input::SessionClosed(SessionId(3)));
    assert_eq!(bench.told(1), None, "nobody knows yet");
    bench.open(4, "c", 8, true);
    let key = BranchKey {
        transaction: id,
        branch: 1,
    };
    assert!(matches!(bench.sent_to(4)[..], [Downward::Prove { key: asked }] if asked == key));
    bench.give(Input::Message {
        session: SessionId(4),
        message: Upward::Proof {
            key,
            completion: Completion::Committed,
        },
    });
    assert_eq!(bench.told(1), Some(TransactionState::Committed));
}

#[test]
fn what_may_have_committed_in_one_phase_before_a_restart_is_not_told_aborted_unasked() {
    let again = |ticket, age_ms| {
        Input::Submit(Submit {
            ticket: Ticket(ticket),
            unique: u128::from(ticket) << 80,
            request_id: RequestId::parse("r"),
            fingerprint: 1,
            branches: vec![(name("c"), b"w"[..].into())],
            age_ms,
            timeout_ms: 1_000,
            answer_decided: false,
            traceparent: String::new(),
        })
    };
    let pending = |bench: &Bench, ticket| {
        let answer = bench.answers.iter().find(|(t, _)| *t == Ticket(ticket));
        matches!(answer, Some((_, Err(Refusal::OutcomePending { .. }))))
    };
    let mut bench = two();
    bench.open(3, "c", 1, true);
    let first = bench.submit_as(1, &["c"], Some("r"));
    let mut bench = bench.restart();
    bench.open(3, "c", 1, true);
    bench.submit(2, &["c"]);

    // It waits for a slot until its time is up: nobody has looked for the first one.
    bench.give(again(3, 100));
    bench.now = bench.now.after_ms(2_000);
    bench.give(Input::Tick);
    assert!(pending(&bench, 3), "{:?}", bench.answers);
    // As good as unheard of: the database could not be reached.
    let id = |ticket: u64| TransactionId {
        log: LOG,
        epoch: Epoch(2),
        unique: u128::from(ticket) << 80,
    };
    bench.open(4, "c", 1, true);
    bench.give(again(4, 3_000));
    bench.vote(4, id(4), 1, Vote::No(no(AbortCode::ParticipantUnavailable)));
    assert!(pending(&bench, 4), "{:?}", bench.answers);
    // It found the marker.
    bench.give(again(5, 4_000));
    bench.vote(4, id(5), 1, Vote::Duplicate(first));
    assert_eq!(bench.told(5), Some(TransactionState::Committed));

    // A first call, and one that a participant has looked into, are told at once.
    for (ticket, age_ms) in [(6, 0), (7, 100)] {
        let mut bench = two().restart();
        bench.open(3, "c", 1, true);
        bench.give(again(ticket, age_ms));
        bench.vote(3, id(ticket), 1, Vote::No(no(AbortCode::Refused)));
        assert_eq!(bench.told(ticket), Some(TransactionState::Aborting));
    }
}

#[test]
fn who_asks_another_session_for_a_proof_frees_no_slot_where_the_branch_is_at_work() {
    let mut bench = Bench::new();
    bench.open(1, "c", 1, true);
    let first = bench.submit(1, &["c"]);
    bench.sent_to(1);
    bench.open(2, "c", 1, true);
    // Its time is up, and up again: each session is asked in turn, and none answers.
    let mut asked = Vec::new();
    for _ in 0..3 {
        bench.now = bench.now.after_ms(20_000);
        bench.give(Input::Tick);
        asked.extend([1, 2].map(|session| bench.sent_to(session)).concat());
        let sessions = &bench.engine.participants()[0].sessions;
        let used: Vec<_> = sessions.iter().map(|session| session.used).collect();
        assert_eq!(used, [1, 0], "{asked:?}");
    }
    let proves = |message: &&Downward| matches!(message, Downward::Prove { .. });
    assert_eq!(asked.iter().filter(proves).count(), 3, "{asked:?}");
    bench.submit(2, &["c"]);
    assert!(matches!(
        bench.sent_to(2)[..],
        [.., Downward::Prepare { .. }]
    ));
    assert!(
        !bench
            .sent_to(1)
            .iter()
            .any(|m| matches!(m, Downward::Prepare { .. }))
    );
    bench.vote(1, first, 1, Vote::Committed);
    assert_eq!(bench.told(1), Some(TransactionState::Committed));
}

#[test]
fn what_a_checkpoint_tells_of_a_transaction_stands_whatever_came_before_it() {
    let id = TransactionId {
        log: LOG,
        epoch: Epoch(1),
        unique: 5,
    };
    let decision = Decision {
        transaction: id,
        request_id: None,
        fingerprint: 1,
        traceparent: String::new(),
        parent: None,
        branches: vec![DecidedBranch {
            number: 1,
            participant: name("a"),
            proof: String::new(),
        }],
    };
    let word = Record::Resolve {
        branch: BranchKey {
            transaction: id,
            branch: 1,
        },
        resolution: Resolution::Committed,
        reason: "by hand".into(),
    };
    let log = [
        word,
        Record::CheckpointBegin {
            epoch: Epoch(1),
            forgotten: None,
        },
        Record::CheckpointTransaction {
            decision,
            ended: false,
            heuristics: Vec::new(),
        },
        Record::CheckpointEnd,
    ];
    let folded = |times: usize| {
        let log = std::iter::repeat_n(&log, times).flatten().cloned();
        Bench::with(log.collect(), Settings::default())
            .engine
            .transaction(&id)
            .unwrap()
            .branches
    };
    assert_eq!(folded(1), folded(2));
    assert_eq!(folded(1)[0].resolution, "");
}

#[test]
fn a_look_up_after_a_restart_asks_who_could_have_committed_in_one_phase() {
    let mut bench = two();
    bench.open(3, "c", 8, true);
    let id = bench.submit(1, &["c"]);
    let mut bench = bench.restart();
    bench.give(Input::Lookup {
        ticket: Ticket(20),
        transaction: id,
    });
    assert!(
        matches!(bench.refused(20), Some(Refusal::OutcomePending { .. })),
        "c is away: its word is missing"
    );
    bench.open(4, "c", 8, true);
    bench.give(Input::Lookup {
        ticket: Ticket(21),
        transaction: id,
    });
    let key = BranchKey {
        transaction: id,
        branch: 1,
    };
    assert!(matches!(bench.sent_to(4)[..], [Downward::Prove { .. }]));
    bench.give(Input::Message {
        session: SessionId(4),
        message: Upward::Proof {
            key,
            completion: Completion::Aborted,
        },
    });
    assert_eq!(bench.told(21), Some(TransactionState::Aborted));
}

#[test]
fn a_vote_for_anothers_branch_is_refused() {
    let mut bench = two();
    let id = bench.submit(1, &["a", "b"]);
    bench.vote(2, id, 1, yes());
    bench.vote(2, id, 2, yes());
    assert_eq!(
        bench.engine.transaction(&id).unwrap().branches[0].state,
        BranchState::Active
    );
    assert!(!matches!(bench.log.last(), Some(Record::Commit(_))));
}

#[test]
fn an_open_transaction_under_a_request_id_is_prepared_even_where_it_uses_one_participant() {
    for (request_id, one_phase) in [(None, true), (RequestId::parse("r"), false)] {
        let mut bench = Bench::new();
        bench.open(1, "a", 8, true);
        bench.open(2, "b", 8, true);
        bench.give(Input::Begin(Begin {
            ticket: Ticket(1),
            unique: 77,
            request_id,
            participants: vec![name("a"), name("b")],
            age_ms: 0,
            timeout_ms: 1_000,
            traceparent: String::new(),
        }));
        let transaction = TransactionId {
            log: LOG,
            epoch: Epoch(1),
            unique: 77,
        };
        bench.give(Input::Execute {
            ticket: Ticket(2),
            transaction,
            participant: name("a"),
            operation: b"o"[..].into(),
        });
        bench.give(Input::Commit {
            ticket: Ticket(3),
            transaction,
            answer_decided: false,
        });
        let sent = bench.sent_to(1);
        let Some(Downward::Prepare {
            one_phase: asked, ..
        }) = sent.last()
        else {
            panic!("{sent:?}");
        };
        assert_eq!(*asked, one_phase);
    }
}

#[test]
fn an_interactive_transaction_executes_then_commits() {
    let mut bench = two();
    bench.give(Input::Begin(Begin {
        ticket: Ticket(1),
        unique: 77,
        request_id: None,
        participants: vec![name("a")],
        age_ms: 0,
        timeout_ms: 1_000,
        traceparent: String::new(),
    }));
    assert_eq!(bench.told(1), Some(TransactionState::Active));
    let transaction = TransactionId {
        log: LOG,
        epoch: Epoch(1),
        unique: 77,
    };
    for (ticket, participant) in [(2, "a"), (3, "b"), (4, "a")] {
        let operation = b"o"[..].into();
        bench.give(Input::Execute {
            ticket: Ticket(ticket),
            transaction,
            participant: name(participant),
            operation,
        });
    }
    assert!(matches!(
        bench.sent_to(1)[..],
        [
            Downward::Execute {
                open: true,
                sequence: 1,
                ..
            },
            Downward::Execute {
                open: false,
                sequence: 2,
                ..
            }
        ]
    ));
    let key = BranchKey {
        transaction,
        branch: 2,
    };
    let result = Ok(b"rows"[..].into());
    bench.give(Input::Message {
        session: SessionId(2),
        message: Upward::Executed {
            key,
            sequence: 1,
            result,
        },
    });
    assert!(bench.answers.iter().any(|(t, a)| t.0 == 3 && matches!(a, Ok(Answer::Executed(rows)) if **rows == *b"rows")));
    bench.sent.clear();
    bench.give(Input::Commit {
        ticket: Ticket(5),
        transaction,
        answer_decided: true,
    });
    assert!(matches!(
        bench.sent_to(2)[..],
        [Downward::Prepare {
            continued: true,
            work: None,
            ..
        }]
    ));
    bench.vote(1, transaction, 1, yes());
    bench.vote(2, transaction, 2, yes());
    bench.sync();
    assert_eq!(
        bench.told(5),
        Some(TransactionState::Committing),
        "answered at the durable decision"
    );
}

#[test]
fn a_checkpoint_carries_what_is_live_and_lets_the_rest_go() {
    let mut bench = two();
    let id = bench.submit_as(1, &["a", "b"], Some("kept"));
    bench.vote(1, id, 1, yes());
    bench.vote(2, id, 2, yes());
    bench.sync();
    bench.give(Input::Checkpoint);
    bench.sync();
    let keep = bench.trimmed.expect("the checkpoint is whole");
    let mut replay = Replay::new();
    bench.log[keep.0 as usize - 1..]
        .iter()
        .cloned()
        .for_each(|record| replay.apply(record));
    assert!(replay.is_whole(keep) && !Replay::new().is_whole(keep));
    let engine = replay.start(LOG, Settings::default(), start(Seq(100), Moment(0)));
    assert_eq!(engine.incarnation().epoch, Epoch(2), "the epoch goes on");
    assert_eq!(
        engine.transaction(&id).unwrap().state,
        TransactionState::Committing
    );
    assert_eq!(engine.participants().len(), 2);
}

#[test]
fn two_databases_may_not_share_a_name() {
    let mut bench = two();
    let mut other = opened(9, "a", 8, false);
    other.resource = "another database".into();
    bench.give(Input::SessionOpened(other));
    assert!(matches!(
        bench.closed[..],
        [Refusal::ResourceMismatch { .. }]
    ));
}

#[test]
fn bounds_are_refused_by_name_and_nothing_starts() {
    let settings = Settings {
        max_branches: 1,
        max_payload_bytes: 1,
        max_in_flight: 1,
        ..Settings::default()
    };
    let mut bench = Bench::with(Vec::new(), settings);
    bench.open(1, "a", 1, false);
    bench.open(2, "b", 1, false);
    bench.submit(1, &["nobody"]);
    bench.submit(2, &["a", "b"]);
    bench.submit(3, &[]);
    bench.submit(4, &["a"]);
    bench.submit(5, &["b"]);
    assert!(matches!(
        bench.refused(1),
        Some(Refusal::ParticipantUnknown(_))
    ));
    assert!(matches!(
        bench.refused(2),
        Some(Refusal::PayloadTooLarge { .. })
    ));
    assert!(matches!(bench.refused(3), Some(Refusal::Invalid { .. })));
    assert!(matches!(
        bench.refused(5),
        Some(Refusal::TooManyTransactions(1))
    ));
    assert!(bench.sent_to(2).is_empty());
    bench.give(Input::Drain);
    bench.submit(6, &["a"]);
    assert!(matches!(bench.refused(6), Some(Refusal::Draining)));
}

/// The bytes of every record, pinned: a log written by this release must read the same for ever.
#[test]
fn records_keep_their_bytes() {
    let golden = include_str!("golden/records.txt");
    let transaction: TransactionId = "u1.0000002a.3.0192f0c4a7b87c3d8e9f00112233aabb"
        .parse()
        .unwrap();
    let decision = unanimity_engine::Decision {
        transaction,
        request_id: RequestId::parse("order-7"),
        fingerprint: 9,
        branches: vec![unanimity_engine::DecidedBranch {
            number: 2,
            participant: name("bank-b"),
            proof: "771".into(),
        }],
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        parent: None,
    };
    let heuristics = vec![unanimity_engine::Heuristic {
        branch: 2,
        kind: unanimity_engine::HeuristicKind::Lost,
        reason: "gone".into(),
    }];
    let records = [
        Record::Epoch(Epoch(3)),
        Record::Participant {
            name: name("bank-b"),
            one_phase: true,
        },
        Record::Commit(decision.clone()),
        Record::End {
            transaction,
            heuristics: heuristics.clone(),
        },
        Record::Resolve {
            branch: BranchKey {
                transaction,
                branch: 2,
            },
            resolution: Resolution::Aborted,
            reason: "disk burnt".into(),
        },
        Record::CheckpointBegin {
            epoch: Epoch(3),
            forgotten: Some(transaction),
        },
        Record::CheckpointTransaction {
            decision,
            ended: true,
            heuristics,
        },
        Record::CheckpointEnd,
    ];
    let hex = |record: &Record| {
        record
            .encode()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    };
    let written = records.iter().map(hex).collect::<Vec<_>>();
    assert_eq!(
        written.join("\n"),
        golden.trim(),
        "a change of these bytes needs a new format version"
    );
    for record in &records {
        assert_eq!(Record::decode(&record.encode()).as_ref(), Ok(record));
    }
    for wrong in [&[][..], &[2, 1], &[1, 255, 255], &[1]] {
        assert!(Record::decode(wrong).is_err());
    }
}
