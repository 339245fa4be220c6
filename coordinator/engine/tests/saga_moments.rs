//! Sagas: narrow moments, one test for each.

#[allow(dead_code, reason = "each test file uses its part of the house")]
mod house;

use house::{Deed, House, Manner, id, lock, name, reason, step, submit, work};
use unanimity_engine::{
    AbortCode, Argument, Binding, BranchKey, Input, Moment, Place, Record, Refusal, SagaRecord,
    StepKind::{Compensatable, Pivot, Retriable},
    StepOutcome, StepState, StepWork, Ticket, TransactionState, Upward,
};

fn cancel(ticket: u64, saga: u64) -> Input {
    Input::Abort {
        ticket: Ticket(ticket),
        transaction: id(saga),
        reason: reason(AbortCode::Client),
    }
}

#[test]
fn a_drain_that_gives_waiting_sagas_up_lets_none_of_them_begin() {
    let mut house = House::new(&[("a", Manner::Does, true)]);
    for (ticket, locks) in [(1, &["x"][..]), (2, &["x", "y"]), (3, &["y"])] {
        let mut saga = submit(ticket, vec![step("a", Compensatable, &[])]);
        (saga.request_id, saga.locks) = (None, locks.iter().map(|key| lock(key)).collect());
        house.give(Input::SubmitSaga(saga));
    }
    house.give(Input::Drain);
    assert_eq!(house.state(2), Some(TransactionState::Aborted));
    assert_eq!(house.state(3), Some(TransactionState::Aborted));
    house.sync();
    house.crash(false);
    house.run();
    assert_eq!(
        house.engine.transaction(&id(3)).map(|t| t.state),
        None,
        "it was told to have been aborted"
    );
    assert_eq!(house.deeds, [Deed::Did("a".into())]);
    assert_eq!(house.engine.locks(None).count(), 0);
}

#[test]
fn a_saga_that_can_only_go_forward_does_so_though_it_was_cancelled_or_late_before_it_began() {
    let mut house = House::new(&[("e", Manner::Does, true)]);
    house.give(Input::SubmitSaga(submit(
        1,
        vec![step("e", Retriable, &[])],
    )));
    house.give(cancel(50, 1));
    house.run();
    assert_eq!(house.refused(50), Some(&Refusal::TransactionDecided(id(1))));
    assert_eq!(house.state(1), Some(TransactionState::Committed));

    let mut house = House::new(&[("e", Manner::Does, true)]);
    let mut saga = submit(1, vec![step("e", Retriable, &[])]);
    saga.timeout_ms = 0;
    house.give(Input::SubmitSaga(saga));
    house.run();
    assert_eq!(house.state(1), Some(TransactionState::Committed));
}

#[test]
fn absurd_times_and_bounds_are_taken_as_very_long_or_none() {
    let mut patient = step("a", Compensatable, &[]);
    patient.retry.attempt_timeout_ms = u64::MAX;
    patient.retry.first_backoff_ms = u64::MAX;
    patient.retry.max_backoff_ms = u64::MAX;
    patient.retry.max_attempts = 0;
    for manner in [Manner::Does, Manner::Fails(1), Manner::Refuses] {
        let mut house = House::new(&[("a", manner, true)]);
        let mut saga = submit(1, vec![patient.clone()]);
        (saga.timeout_ms, saga.lock_timeout_ms) = (u64::MAX, u64::MAX);
        house.give(Input::SubmitSaga(saga));
        house.run();
        let expected = if manner == Manner::Does {
            TransactionState::Committed
        } else {
            TransactionState::Compensated
        };
        assert_eq!(house.state(1), Some(expected), "{manner:?}");
    }
}

#[test]
fn a_step_that_needs_no_undoing_still_stands_between_its_neighbours() {
    let mut house = House::new(&[
        ("a", Manner::Does, true),
        ("b", Manner::Does, true),
        ("c", Manner::Does, true),
        ("d", Manner::Refuses, true),
    ]);
    let mut plain = step("b", Compensatable, &["a"]);
    if let StepWork::Single { compensation, .. } = &mut plain.work {
        *compensation = None;
    }
    let steps = vec![
        step("a", Compensatable, &[]),
        plain,
        step("c", Compensatable, &["b"]),
        step("d", Compensatable, &["c"]),
    ];
    house.give(Input::SubmitSaga(submit(1, steps)));
    house.run();
    let undid: Vec<_> = house
        .deeds
        .iter()
        .filter(|deed| matches!(deed, Deed::Undid(_)))
        .collect();
    assert_eq!(undid, [&Deed::Undid("c".into()), &Deed::Undid("a".into())]);
}

/// `x` and `y` commit together.
fn group() -> unanimity_engine::StepDefinition {
    let mut group = step("g", Pivot, &[]);
    group.work = StepWork::Group(vec![(name("x"), work()), (name("y"), work())]);
    group
}

#[test]
fn a_drain_does_not_use_up_the_attempts_of_an_atomic_group() {
    let mut house = House::new(&[
        ("a", Manner::Does, true),
        ("x", Manner::Does, true),
        ("y", Manner::Hangs, true),
    ]);
    // Others hold all slots of y, so the group waits.
    let mut only_y = step("y", Retriable, &[]);
    only_y.retry.attempt_timeout_ms = 60_000;
    for ticket in [11, 12] {
        let mut saga = submit(ticket, vec![only_y.clone()]);
        saga.request_id = None;
        house.give(Input::SubmitSaga(saga));
    }
    house.sync();
    let mut once = group();
    once.retry.max_attempts = 1;
    house.give(Input::SubmitSaga(submit(
        1,
        vec![step("a", Compensatable, &[]), once],
    )));
    while house.deeds.is_empty() || !house.replies.is_empty() {
        assert!(house.step());
    }
    house.give(Input::Drain);
    house.sync();
    house.sites[2].manner = Manner::Does;
    house.crash(false);
    house.give(Input::SubmitSaga(submit(1, vec![])));
    house.run();
    let state = house.engine.transaction(&id(1)).map(|t| t.state);
    assert_eq!(
        state,
        Some(TransactionState::Committed),
        "{:?}",
        house.deeds
    );
}

#[test]
fn a_checkpoint_carries_what_is_on_its_way_to_the_disk() {
    // A group that changed nothing: only the saga's log tells that it is done.
    let mut house = House::new(&[
        ("x", Manner::Does, true),
        ("y", Manner::Does, true),
        ("e", Manner::Hangs, true),
    ]);
    house
        .sites
        .iter_mut()
        .for_each(|site| site.reads_only = true);
    let steps = vec![group(), step("e", Retriable, &[])];
    house.give(Input::SubmitSaga(submit(1, steps)));
    let done = |house: &House| {
        let step = |r: &&Record| matches!(r, Record::Saga(SagaRecord::Step { .. }));
        house.log.iter().filter(step).count()
    };
    while done(&house) == 0 {
        assert!(house.step());
    }
    house.checkpoint();
    for site in &mut house.sites {
        site.manner = Manner::Refuses;
    }
    house.crash(false);
    let view = house.engine.transaction(&id(1)).and_then(|t| t.saga);
    let states: Vec<_> = view
        .expect("a saga")
        .steps
        .iter()
        .map(|s| s.state)
        .collect();
    assert_eq!(states[0], StepState::Done);

    // An operator's word.
    let mut house = House::new(&[("a", Manner::Hangs, true)]);
    house.give(Input::SubmitSaga(submit(1, vec![step("a", Pivot, &[])])));
    house.sync();
    house.give(Input::ResolveStep {
        ticket: Ticket(60),
        transaction: id(1),
        step: "a".into(),
        reason: "by hand".into(),
    });
    house.checkpoint();
    assert_eq!(house.state(60), Some(TransactionState::Committed));
    house.crash(false);
    house.now = Moment(100_000);
    house.run();
    let view = house.engine.transaction(&id(1));
    assert_eq!(view.map(|t| t.state), Some(TransactionState::Committed));
}

#[test]
fn a_participant_can_not_tell_of_what_it_was_not_sent() {
    let mut house = House::new(&[("a", Manner::Hangs, true), ("b", Manner::Does, true)]);
    house.tolerant = true;
    let mut steps = vec![
        step("a", Compensatable, &[]),
        step("b", Compensatable, &["a"]),
    ];
    steps[0].retry.max_attempts = 1;
    house.give(Input::SubmitSaga(submit(1, steps)));
    let session = house.sites[1].session.expect("it is here");
    let forge = |branch| Input::Message {
        session,
        message: Upward::StepResult {
            key: BranchKey {
                transaction: id(1),
                branch,
            },
            attempt: 0,
            outcome: StepOutcome::Done([].into()),
        },
    };
    for branch in [2, 4] {
        house.give(forge(branch));
        house.sync();
        house.give(forge(branch));
    }
    assert_eq!(house.mistakes.len(), 4);
    house.run();
    assert_eq!(house.state(1), Some(TransactionState::Compensated));
    assert_eq!(house.deeds, []);
}

#[test]
fn a_step_that_can_never_happen_is_not_sent_again_at_once() {
    for (kind, ends) in [(Compensatable, true), (Retriable, false)] {
        let mut house = House::new(&[("a", Manner::Hangs, true)]);
        house.give(Input::SubmitSaga(submit(1, vec![step("a", kind, &[])])));
        while house.sites[0].attempts == 0 {
            assert!(house.step());
        }
        let session = house.sites[0].session.expect("it is here");
        house.give(Input::Message {
            session,
            message: Upward::StepResult {
                key: BranchKey {
                    transaction: id(1),
                    branch: 1,
                },
                attempt: 1,
                outcome: StepOutcome::Never,
            },
        });
        house.sync();
        assert!(house.sites[0].is_idle());
        assert_eq!(house.state(1) == Some(TransactionState::Compensated), ends);
    }
}

#[test]
fn only_so_many_cancels_wait_for_a_turn() {
    let mut house = House::new(&[("a", Manner::Mumbles(1), true), ("b", Manner::Does, true)]);
    house.give(Input::SubmitSaga(submit(
        1,
        vec![
            step("a", Compensatable, &[]),
            step("b", Compensatable, &["a"]),
        ],
    )));
    house.sync();
    for ticket in 100..300 {
        house.give(cancel(ticket, 1));
    }
    let pending = |refusal: &Refusal| matches!(refusal, Refusal::OutcomePending { .. });
    assert!(house.refused(100).is_some_and(pending));
    house.run();
    assert_eq!(house.state(299), Some(TransactionState::Compensating));
    assert_eq!(house.answers.len(), 201);
}

#[test]
fn a_step_names_no_more_than_there_can_be() {
    let mut house = House::new(&[("a", Manner::Does, true), ("b", Manner::Does, true)]);
    let often = vec!["a"; 100_000];
    let steps = vec![
        step("a", Compensatable, &[]),
        step("b", Compensatable, &often),
    ];
    house.give(Input::SubmitSaga(submit(1, steps)));
    let mut crowd = group();
    crowd.work = StepWork::Group(vec![(name("a"), work()); 100_000]);
    house.give(Input::SubmitSaga(submit(2, vec![crowd])));
    for (ticket, expected) in [(1, "steps[1].after"), (2, "steps[0].group.branches")] {
        match house.refused(ticket) {
            Some(Refusal::Invalid { field, .. }) => assert_eq!(field, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_atomic_group_waits_for_slots_as_long_as_its_saga_may() {
    for timeout_ms in [60_000, 5_000] {
        let mut house = House::new(&[
            ("a", Manner::Does, true),
            ("x", Manner::Does, true),
            ("y", Manner::Hangs, true),
        ]);
        let mut slow = step("y", Retriable, &[]);
        slow.retry.attempt_timeout_ms = 10_000;
        for ticket in [11, 12] {
            let mut saga = submit(ticket, vec![slow.clone()]);
            saga.request_id = None;
            house.give(Input::SubmitSaga(saga));
        }
        house.sync();
        let mut saga = submit(1, vec![step("a", Compensatable, &[]), group()]);
        saga.timeout_ms = timeout_ms;
        house.give(Input::SubmitSaga(saga));
        while house.state(1).is_none() {
            assert!(house.step());
        }
        let (state, at) = if timeout_ms == 60_000 {
            (TransactionState::Committed, 12_000)
        } else {
            (TransactionState::Compensated, 5_000)
        };
        assert_eq!((house.state(1), house.now), (Some(state), Moment(at)));
    }
}

#[test]
fn a_drain_freezes_the_steps_that_wait_for_a_slot() {
    let mut house = House::new(&[("a", Manner::Does, true)]);
    let at_a = |index: usize| {
        let mut step = step(&format!("a{index}"), Compensatable, &[]);
        if let StepWork::Single { participant, .. } = &mut step.work {
            *participant = name("a");
        }
        step
    };
    house.give(Input::SubmitSaga(submit(1, (0..5).map(at_a).collect())));
    house.sync();
    house.give(Input::Drain);
    while !house.sites[0].is_idle() || !house.replies.is_empty() {
        house.step();
    }
    assert_eq!(house.deeds.len(), 2, "as many as there are slots");
    house.crash(false);
    house.run();
    assert_eq!(house.deeds.len(), 5);
    assert_eq!(house.engine.in_flight(), 0);
}

/// What is fenced stays so, whichever question the answer belongs to.
#[test]
fn a_step_that_takes_longer_to_settle_than_the_coordinator_waits_is_settled() {
    let mut house = House::new(&[("a", Manner::Hangs, true)]);
    house.give(Input::SubmitSaga(submit(
        1,
        vec![step("a", Compensatable, &[])],
    )));
    // Each answer comes when the next question is on its way.
    let mut slow = None;
    for _ in 0..200 {
        let never = |(_, message): &(_, Upward)| {
            matches!(
                message,
                Upward::StepResult {
                    outcome: StepOutcome::Never,
                    ..
                }
            )
        };
        if let Some(at) = house.replies.iter().position(never)
            && let Some((session, message)) = std::mem::replace(&mut slow, house.replies.remove(at))
        {
            house.give(Input::Message { session, message });
        }
        if !house.step() {
            break;
        }
    }
    assert_eq!(house.state(1), Some(TransactionState::Compensated));
    assert_eq!(house.deeds, []);
}

/// A participant that may have forgotten what is that old would not undo it.
#[test]
fn a_compensation_is_as_old_as_itself_and_not_as_its_step() {
    for crash in [false, true] {
        let mut house = House::new(&[("a", Manner::Does, true), ("b", Manner::Hangs, true)]);
        let mut patient = step("b", Compensatable, &["a"]);
        patient.retry.max_attempts = 1_000;
        let steps = vec![step("a", Compensatable, &[]), patient];
        house.give(Input::SubmitSaga(submit(1, steps)));
        let began = house.now;
        while !house.deeds.contains(&Deed::Did("a".into())) {
            assert!(house.step());
        }
        if crash {
            house.sync();
            house.crash(false);
        }
        house.run();
        let transaction = house.engine.transaction(&id(1));
        let state = transaction.map(|it| it.state);
        assert_eq!(state, Some(TransactionState::Compensated));
        assert!(
            house.now.0 - began.0 >= 60_000,
            "it turns when its time is up"
        );
        assert_eq!(house.deeds.last(), Some(&Deed::Undid("a".into())));
        assert_eq!(house.sites[0].age_ms, 0, "after a crash: {crash}");
    }
}

/// An earlier incarnation may have sent it at any time since the turn, which is not known.
#[test]
fn a_compensation_that_an_earlier_incarnation_may_have_sent_is_as_old_as_its_saga() {
    let mut house = House::new(&[("a", Manner::Does, true), ("b", Manner::Refuses, true)]);
    let steps = vec![
        step("a", Compensatable, &[]),
        step("b", Compensatable, &["a"]),
    ];
    house.give(Input::SubmitSaga(submit(1, steps)));
    let state = |house: &House| house.engine.transaction(&id(1)).map(|it| it.state);
    while state(&house) != Some(TransactionState::Compensating) {
        assert!(house.step());
    }
    house.now = Moment(house.now.0 + 5_000);
    house.crash(false);
    house.run();
    assert_eq!(state(&house), Some(TransactionState::Compensated));
    assert!(house.sites[0].age_ms >= 4_000, "{}", house.sites[0].age_ms);
}

/// A step that was done before a crash, and can't be sent again to find that out, is not taken for one that never was.
#[test]
fn a_pivot_that_can_not_be_asked_again_is_not_presumed_undone() {
    let mut house = House::new(&[("a", Manner::Does, true), ("b", Manner::Does, false)]);
    let mut pivot = step("b", Pivot, &["a"]);
    if let StepWork::Single { action, .. } = &mut pivot.work {
        action.bindings.push(Binding {
            place: Place {
                operation: 0,
                argument: Argument::Parameter("of".into()),
            },
            reference: "a.step".parse().expect("a reference"),
        });
    }
    let steps = vec![step("a", Compensatable, &[]), pivot];
    house.give(Input::SubmitSaga(submit(1, steps)));
    while house.deeds.len() < 2 {
        assert!(house.step());
    }
    house.crash(false);
    house.close_session(0);
    let resolve = |ticket: u64, step: &str| Input::ResolveStep {
        ticket: Ticket(ticket),
        transaction: id(1),
        step: step.into(),
        reason: "done at the console".into(),
    };
    // Of what an operator did by hand there is no result, to which the pivot refers.
    house.give(resolve(60, "a"));
    house.sync();
    house.open_session(0);
    for _ in 0..200 {
        house.step();
    }
    let saga = |house: &House| house.engine.transaction(&id(1)).expect("it is remembered");
    let steps = saga(&house).saga.expect("a saga").steps;
    assert_eq!(saga(&house).state, TransactionState::Running);
    assert!(steps[1].stuck, "a human must look");
    house.give(resolve(61, "b"));
    house.run();
    assert_eq!(saga(&house).state, TransactionState::Committed);
    assert_eq!(
        house.deeds,
        [Deed::Did("a".into()), Deed::Did("b".into())],
        "nothing is undone"
    );
}

/// What an operator did must be undone with the rest, though his word was not durable yet when the saga wanted to turn.
#[test]
fn a_step_done_by_hand_is_undone_when_its_saga_turns_before_that_is_durable() {
    for crash in [false, true] {
        let mut house = House::new(&[("a", Manner::Does, true), ("b", Manner::Does, true)]);
        house.close_session(0);
        let steps = vec![
            step("a", Compensatable, &[]),
            step("b", Compensatable, &["a"]),
        ];
        house.give(Input::SubmitSaga(submit(1, steps)));
        house.sync();
        house.give(Input::ResolveStep {
            ticket: Ticket(60),
            transaction: id(1),
            step: "a".into(),
            reason: "done at the console".into(),
        });
        house.give(cancel(50, 1));
        house.sync();
        house.sync();
        if crash {
            house.crash(false);
        }
        let view = house.engine.transaction(&id(1)).expect("it is remembered");
        let step = &view.saga.expect("a saga").steps[0];
        assert_eq!(view.state, TransactionState::Compensating, "crash: {crash}");
        assert_eq!(step.state, StepState::Compensating, "crash: {crash}");
    }
}
