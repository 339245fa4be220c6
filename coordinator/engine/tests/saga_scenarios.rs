//! Sagas, one behaviour after the other. `sagas.rs` has every mishap at every step.

#[allow(dead_code, reason = "each test file uses its part of the house")]
mod house;

use house::{Deed, House, Manner, id, lock, reason, step, submit};
use unanimity_engine::{
    AbortCode, Binding, BranchKey, Input, Moment, Payload, Place, Refusal, StepDefinition,
    StepKind::{Compensatable, Pivot, Retriable},
    StepOutcome, StepState, StepWork, Ticket, TransactionState, Upward, Work,
};

fn three(at: usize, manner: Manner) -> House {
    let manner = |index| if index == at { manner } else { Manner::Does };
    House::new(&[
        ("a", manner(0), true),
        ("b", manner(1), true),
        ("e", manner(2), true),
    ])
}

fn a_then_b() -> Vec<StepDefinition> {
    vec![
        step("a", Compensatable, &[]),
        step("b", Compensatable, &["a"]),
    ]
}

#[test]
fn nothing_is_sent_before_the_beginning_is_durable_nor_compensated_before_the_turn_is() {
    let mut house = three(1, Manner::Refuses);
    house.give(Input::SubmitSaga(submit(1, a_then_b())));
    assert!(house.sites.iter().all(|site| site.is_idle()));
    house.run();
    assert_eq!(house.state(1), Some(TransactionState::Compensated));
    let told = house.told(1).expect("it was answered");
    let why = told.abort_reason.as_ref().expect("it turned");
    assert_eq!(
        (why.code, why.participant.as_str()),
        (AbortCode::Refused, "b")
    );
    let steps = &told.saga.as_ref().expect("a saga").steps;
    assert_eq!(
        [steps[0].state, steps[1].state],
        [StepState::Compensated, StepState::Failed]
    );
}

#[test]
fn a_saga_may_be_answered_when_its_beginning_is_durable() {
    let mut house = three(0, Manner::Does);
    let mut accepted = submit(1, a_then_b());
    accepted.answer_accepted = true;
    house.give(Input::SubmitSaga(accepted));
    assert_eq!(house.state(1), None);
    house.sync();
    assert_eq!(house.state(1), Some(TransactionState::Running));
    house.run();
    assert_eq!(
        house.engine.transaction(&id(1)).map(|t| t.state),
        Some(TransactionState::Committed)
    );
}

#[test]
fn each_call_for_one_saga_is_answered_when_it_asked_to_be() {
    for first_is_early in [false, true] {
        let mut house = three(0, Manner::Does);
        for (ticket, early) in [(1, first_is_early), (2, !first_is_early)] {
            let mut call = submit(ticket, a_then_b());
            (call.answer_accepted, call.unique) = (early, 1 << 80);
            house.give(Input::SubmitSaga(call));
        }
        house.sync();
        let (early, late) = if first_is_early { (1, 2) } else { (2, 1) };
        assert_eq!(house.state(early), Some(TransactionState::Running));
        assert_eq!(house.state(late), None);
        house.run();
        assert_eq!(house.state(late), Some(TransactionState::Committed));
    }
}

#[test]
fn locks_are_granted_together_in_order_and_their_token_grows_over_a_restart() {
    let mut house = three(0, Manner::Does);
    let with = |ticket: u64, locks: &[&str]| {
        let mut submit = submit(ticket, vec![step("a", Compensatable, &[])]);
        (submit.request_id, submit.locks) = (None, locks.iter().map(|key| lock(key)).collect());
        submit
    };
    house.close_session(0);
    for (ticket, locks) in [
        (1, &["x", "y"][..]),
        (2, &["y", "z"]),
        (3, &["z"]),
        (4, &["w"]),
    ] {
        house.give(Input::SubmitSaga(with(ticket, locks)));
    }
    let holders = |house: &House| {
        let view = |lock: unanimity_engine::LockView| {
            (
                lock.key.as_str().to_owned(),
                lock.holder.unique >> 80,
                lock.waiting,
            )
        };
        house.engine.locks(None).map(view).collect::<Vec<_>>()
    };
    // 3 wants only z, which is free; but 2 came first for it.
    let expected = [("w", 4, 0), ("x", 1, 0), ("y", 1, 1)]
        .map(|(key, holder, waiting)| (key.to_owned(), holder, waiting));
    assert_eq!(holders(&house), expected);
    let waiting = house
        .engine
        .transaction(&id(2))
        .and_then(|t| t.saga)
        .expect("a saga");
    assert_eq!(waiting.waiting_for, [lock("y")]);
    house.sync();
    house.crash(false);
    assert_eq!(
        holders(&house).len(),
        3,
        "rebuilt from the log; who waited is gone, and asks again"
    );
    let mut again = with(5, &["y"]);
    again.lock_timeout_ms = 600_000;
    house.give(Input::SubmitSaga(again));
    assert_eq!(house.state(5), None);
    house.run();
    assert_eq!(holders(&house), []);
    assert_eq!(house.state(5), Some(TransactionState::Committed));
    let token = |ticket: u64, house: &House| {
        house
            .engine
            .transactions(None)
            .find(|t| t.id.unique >> 80 == u128::from(ticket))
            .and_then(|t| t.saga)
            .map(|s| s.token)
    };
    assert!(token(5, &house) > token(1, &house) && token(1, &house) > Some(0));
}

#[test]
fn waiting_for_a_lock_has_an_end_and_leaves_nothing() {
    let mut house = three(0, Manner::Does);
    let mut first = submit(1, a_then_b());
    (first.locks, first.request_id) = (vec![lock("x")], None);
    house.give(Input::SubmitSaga(first));
    let mut second = submit(2, a_then_b());
    (second.locks, second.request_id) = (vec![lock("x")], None);
    house.give(Input::SubmitSaga(second));
    house.now = Moment(1_000);
    house.give(Input::Tick);
    assert_eq!(house.state(2), Some(TransactionState::Aborted));
    let why = house
        .told(2)
        .and_then(|t| t.abort_reason.clone())
        .expect("a reason");
    assert_eq!(why.code, AbortCode::Timeout);
    assert!(why.message.contains("locks: x"), "{}", why.message);
    house.run();
    assert_eq!(house.state(1), Some(TransactionState::Committed));
}

fn refers(text: &str) -> Work {
    let place = Place {
        operation: 0,
        argument: unanimity_engine::Argument::Parameter("p".into()),
    };
    let binding = Binding {
        place,
        reference: text.parse().expect("a reference"),
    };
    Work {
        payload: Payload::from(&b"w"[..]),
        bindings: vec![binding],
    }
}

fn with_action(mut step: StepDefinition, work: Work) -> StepDefinition {
    if let StepWork::Single { action, .. } = &mut step.work {
        *action = work;
    }
    step
}

fn with_compensation(mut step: StepDefinition, work: Work) -> StepDefinition {
    if let StepWork::Single { compensation, .. } = &mut step.work {
        *compensation = Some(work);
    }
    step
}

#[test]
fn a_reference_takes_its_value_from_the_step_it_names_also_after_a_crash() {
    let steps = || {
        vec![
            with_compensation(step("a", Compensatable, &[]), refers("a.step")),
            with_action(step("b", Compensatable, &["a"]), refers("a.step")),
        ]
    };
    for crash in 0..20 {
        let mut house = three(1, Manner::Refuses);
        house.give(Input::SubmitSaga(submit(1, steps())));
        for event in 0.. {
            if event == crash {
                house.crash(false);
                house.give(Input::SubmitSaga(submit(1, steps())));
            }
            if !house.step() {
                break;
            }
        }
        let text = |site: usize| {
            house.sites[site]
                .values
                .first()
                .map(|bound| format!("{:?}", bound.value))
        };
        assert_eq!(text(1), Some("Text(\"a\")".into()), "crash {crash}");
        assert!(
            text(0).is_some(),
            "crash {crash}: the compensation got its own step's result"
        );
        assert_eq!(
            house.deeds,
            [Deed::Did("a".into()), Deed::Undid("a".into())]
        );
    }
}

#[test]
fn a_compensation_that_uses_its_own_result_waits_to_hear_it() {
    let mut house = House::new(&[("a", Manner::Mumbles(1), false), ("b", Manner::Does, false)]);
    let refers = with_compensation(step("a", Compensatable, &[]), refers("a.step"));
    let steps = vec![refers, step("b", Compensatable, &["a"])];
    house.give(Input::SubmitSaga(submit(1, steps)));
    while house.deeds.is_empty() {
        assert!(house.step());
    }
    let (ticket, reason) = (Ticket(50), reason(AbortCode::Client));
    house.give(Input::Abort {
        ticket,
        transaction: id(1),
        reason,
    });
    house.run();
    assert_eq!(house.state(1), Some(TransactionState::Compensated));
    assert_eq!(house.sites[0].values.len(), 1);
    assert_eq!(
        house.deeds,
        [Deed::Did("a".into()), Deed::Undid("a".into())]
    );
}

#[test]
fn a_reference_that_finds_nothing_refuses_the_step() {
    let mut house = three(0, Manner::Does);
    let steps = vec![
        step("a", Compensatable, &[]),
        with_action(step("b", Compensatable, &["a"]), refers("a.rows.0.id")),
    ];
    house.give(Input::SubmitSaga(submit(1, steps)));
    house.run();
    assert_eq!(house.state(1), Some(TransactionState::Compensated));
    let why = house
        .told(1)
        .and_then(|t| t.abort_reason.clone())
        .expect("a reason");
    assert_eq!(why.code, AbortCode::InvalidOperation);
    assert!(
        why.message
            .contains("a.rows.0.id: the step's result has no rows"),
        "{}",
        why.message
    );
    assert_eq!(
        house.deeds,
        [Deed::Did("a".into()), Deed::Undid("a".into())]
    );
}

#[test]
fn a_definition_that_makes_no_sense_is_refused_by_the_name_of_its_field() {
    let group = |kind, names: &[&str]| {
        let mut group = step("g", kind, &[]);
        group.work = StepWork::Group(
            names
                .iter()
                .map(|n| (house::name(n), house::work()))
                .collect(),
        );
        group
    };
    let compensated = |kind| with_compensation(step("b", kind, &[]), house::work());
    let cases: Vec<(&str, Vec<StepDefinition>)> = vec![
        ("steps", vec![]),
        (
            "steps[1].name",
            vec![step("a", Compensatable, &[]), step("a", Compensatable, &[])],
        ),
        ("steps[0].after[0]", vec![step("a", Compensatable, &["z"])]),
        (
            "steps[0].after",
            vec![
                step("a", Compensatable, &["b"]),
                step("b", Compensatable, &["a"]),
            ],
        ),
        ("steps[0].after", vec![step("a", Compensatable, &["a"])]),
        (
            "steps[1].kind",
            vec![step("a", Pivot, &[]), step("b", Pivot, &[])],
        ),
        (
            "steps[1].after[0]",
            vec![step("a", Pivot, &[]), step("b", Compensatable, &["a"])],
        ),
        (
            "steps[1].after[0]",
            vec![step("a", Retriable, &[]), step("b", Compensatable, &["a"])],
        ),
        (
            "steps[1].after[0]",
            vec![step("a", Retriable, &[]), step("b", Pivot, &["a"])],
        ),
        ("steps[0].action.compensation", vec![compensated(Retriable)]),
        ("steps[0].action.compensation", vec![compensated(Pivot)]),
        ("steps[0].kind", vec![group(Compensatable, &["a", "b"])]),
        ("steps[0].group.branches", vec![group(Pivot, &["a"])]),
        (
            "steps[0].group.branches[1]",
            vec![group(Pivot, &["a", "a"])],
        ),
        (
            "steps[0].action.operation.parameters.p",
            vec![with_action(step("a", Compensatable, &[]), refers("z.id"))],
        ),
        (
            "steps[0].action.operation.parameters.p",
            vec![with_action(step("a", Compensatable, &[]), refers("a.id"))],
        ),
        (
            "steps[1].action.operation.parameters.p",
            vec![
                step("a", Compensatable, &[]),
                with_action(step("b", Compensatable, &[]), refers("a.id")),
            ],
        ),
        (
            "steps[1].action.operation.parameters.p",
            vec![
                group(Pivot, &["a", "b"]),
                with_action(step("e", Retriable, &[]), refers("g.id")),
            ],
        ),
    ];
    for (field, steps) in cases {
        let mut house = three(0, Manner::Does);
        house.give(Input::SubmitSaga(submit(1, steps)));
        match house.refused(1) {
            Some(Refusal::Invalid {
                field: found,
                problem,
            }) => {
                assert_eq!(found, field, "{problem}");
                assert!(problem.len() > 10, "{problem}");
            }
            other => panic!("{field}: {other:?}"),
        }
        assert_eq!(house.engine.in_flight(), 0);
    }
    let mut house = three(0, Manner::Does);
    house.give(Input::SubmitSaga(submit(
        1,
        vec![step("nobody", Compensatable, &[])],
    )));
    assert_eq!(
        house.refused(1),
        Some(&Refusal::ParticipantUnknown("nobody".into()))
    );
}

#[test]
fn a_step_that_fails_for_ever_is_shown_as_stuck_and_can_be_tried_now_or_marked_done() {
    let forward = || vec![step("a", Pivot, &[]), step("e", Retriable, &[])];
    let stuck = |house: &mut House| {
        while house.stuck.is_empty() {
            assert!(house.step());
        }
        let saga = house
            .engine
            .transaction(&id(1))
            .and_then(|t| t.saga)
            .expect("a saga");
        let step = saga.steps.last().expect("e").clone();
        assert!(
            step.stuck && step.next_attempt.is_some() && step.last_error == "because",
            "{step:?}"
        );
        assert_eq!((step.state, step.attempts), (StepState::Retrying, 3));
    };
    let mut house = three(2, Manner::Fails(3));
    house.give(Input::SubmitSaga(submit(1, forward())));
    stuck(&mut house);
    let before = house.now;
    house.give(Input::Retry {
        ticket: Ticket(60),
        transaction: id(1),
    });
    while house.state(1).is_none() {
        assert!(house.step());
    }
    assert_eq!(
        (house.state(1), house.now),
        (Some(TransactionState::Committed), before),
        "without a pause"
    );

    let mut house = three(2, Manner::Fails(u32::MAX));
    house.give(Input::SubmitSaga(submit(1, forward())));
    stuck(&mut house);
    let resolve = |step: &str| Input::ResolveStep {
        ticket: Ticket(61),
        transaction: id(1),
        step: step.into(),
        reason: "shipped by hand".into(),
    };
    let forced = house.forced;
    house.give(resolve("e"));
    assert_eq!(
        (house.forced, house.state(61)),
        (forced + 1, None),
        "durable first"
    );
    house.crash(false);
    house.give(resolve("e"));
    house.sync();
    house.run();
    let view = house.told(61).expect("an answer");
    assert_eq!(view.state, TransactionState::Committed);
    assert_eq!(
        view.saga.as_ref().map(|s| s.steps[1].resolution.as_str()),
        Some("shipped by hand")
    );
    let mut house = three(0, Manner::Does);
    house.give(Input::SubmitSaga(submit(1, forward())));
    house.give(resolve("e"));
    assert!(matches!(
        house.refused(61),
        Some(Refusal::StepNotTried { .. })
    ));
}

#[test]
fn a_cancel_past_the_pivot_is_refused() {
    let mut house = three(2, Manner::Fails(u32::MAX));
    house.give(Input::SubmitSaga(submit(
        1,
        vec![step("a", Pivot, &[]), step("e", Retriable, &[])],
    )));
    while house.stuck.is_empty() {
        assert!(house.step());
    }
    let cancel = |ticket| Input::Abort {
        ticket: Ticket(ticket),
        transaction: id(1),
        reason: reason(AbortCode::Client),
    };
    house.give(cancel(60));
    assert_eq!(house.refused(60), Some(&Refusal::TransactionDecided(id(1))));
    house.crash(false);
    house.give(cancel(61));
    for _ in 0..20 {
        house.step();
    }
    assert_eq!(
        house.refused(61),
        Some(&Refusal::TransactionDecided(id(1))),
        "after a restart the pivot is asked first"
    );
}

#[test]
fn a_saga_outlives_the_segments_that_it_began_in() {
    for checkpoint_at in 0..24 {
        let mut house = three(1, Manner::Refuses);
        let mut with_lock = submit(1, a_then_b());
        with_lock.locks = vec![lock("x")];
        house.give(Input::SubmitSaga(with_lock));
        for event in 0.. {
            if event == checkpoint_at {
                house.checkpoint();
                house.crash(false);
            }
            if !house.step() {
                break;
            }
        }
        let state = house.engine.transaction(&id(1)).map(|t| t.state);
        assert!(
            state.is_none_or(|s| s == TransactionState::Compensated),
            "{checkpoint_at}: {state:?}"
        );
        assert!(
            house.deeds.is_empty()
                || house.deeds == [Deed::Did("a".into()), Deed::Undid("a".into())],
            "{checkpoint_at}: {:?}",
            house.deeds
        );
        assert_eq!(
            (house.engine.in_flight(), house.engine.locks(None).count()),
            (0, 0)
        );
    }
}

#[test]
fn a_draining_coordinator_takes_no_step_up_and_the_next_one_goes_on() {
    let mut house = three(0, Manner::Does);
    house.give(Input::SubmitSaga(submit(1, a_then_b())));
    house.sync();
    house.give(Input::Drain);
    while house.deeds.is_empty() || !house.replies.is_empty() || house.synced < house.log.len() {
        house.step();
    }
    assert!(house.sites.iter().all(|site| site.is_idle()));
    let (ticket, reason) = (Ticket(60), reason(AbortCode::Client));
    house.give(Input::Abort {
        ticket,
        transaction: id(1),
        reason,
    });
    house.give(Input::SubmitSaga(submit(61, a_then_b())));
    for ticket in [60, 61] {
        let refused = house.refused(ticket);
        assert_eq!(refused, Some(&Refusal::Interrupted(id(1))), "{ticket}");
    }
    assert_eq!(
        house.deeds,
        [Deed::Did("a".into())],
        "what was sent is answered, nothing more is sent"
    );
    house.crash(false);
    house.run();
    assert_eq!(house.deeds, [Deed::Did("a".into()), Deed::Did("b".into())]);
}

#[test]
fn a_saga_waits_for_a_participant_that_is_away_until_its_time_is_up_also_over_a_restart() {
    for crash in [false, true] {
        let mut house = three(1, Manner::Does);
        house.close_session(1);
        house.give(Input::SubmitSaga(submit(1, a_then_b())));
        while house.deeds.is_empty() {
            assert!(house.step());
        }
        if crash {
            house.crash(false);
            house.close_session(1);
            house.give(Input::SubmitSaga(submit(1, a_then_b())));
        }
        house.run();
        if crash {
            let state = house.state(1);
            assert_eq!(state, None, "b may have been sent, and only it can tell");
            house.open_session(1);
            house.run();
        }
        assert_eq!(
            house.state(1),
            Some(TransactionState::Compensated),
            "crash {crash}"
        );
        let why = house.told(1).and_then(|t| t.abort_reason.clone());
        assert_eq!(why.map(|reason| reason.code), Some(AbortCode::Timeout));
        assert_eq!(
            house.deeds,
            [Deed::Did("a".into()), Deed::Undid("a".into())]
        );
    }
}

#[test]
fn a_lock_is_free_only_when_its_saga_has_ended() {
    let mut house = three(0, Manner::Does);
    for ticket in [1, 2] {
        let mut submit = submit(ticket, a_then_b());
        (submit.request_id, submit.locks) = (None, vec![lock("x")]);
        submit.lock_timeout_ms = 60_000;
        house.give(Input::SubmitSaga(submit));
    }
    let state = |house: &House, ticket| house.engine.transaction(&id(ticket)).map(|t| t.state);
    while house.state(1).is_none() {
        assert_eq!(state(&house, 2), Some(TransactionState::Waiting));
        assert!(house.step());
    }
    house.run();
    assert_eq!(house.state(2), Some(TransactionState::Committed));
    assert_eq!(house.deeds.len(), 4);
}

#[test]
fn an_answer_to_an_earlier_attempt_counts_only_where_it_says_done() {
    for late in [
        StepOutcome::Refused(reason(AbortCode::Refused)),
        StepOutcome::Failed(reason(AbortCode::Conflict)),
        StepOutcome::Never,
        StepOutcome::Done([].into()),
    ] {
        let mut house = three(0, Manner::Hangs);
        house.give(Input::SubmitSaga(submit(1, a_then_b())));
        while house.sites[0].attempts < 2 {
            assert!(house.step());
        }
        let key = BranchKey {
            transaction: id(1),
            branch: 1,
        };
        let session = house.sites[0].session.expect("it is here");
        let outcome = late.clone();
        house.give(Input::Message {
            session,
            message: Upward::StepResult {
                key,
                attempt: 1,
                outcome,
            },
        });
        let saga = house.engine.transaction(&id(1)).and_then(|t| t.saga);
        let state = saga.expect("a saga").steps[0].state;
        if matches!(late, StepOutcome::Done(_)) {
            assert_eq!(state, StepState::Done);
        } else {
            assert_eq!(state, StepState::Running, "{late:?}");
        }
    }
}
