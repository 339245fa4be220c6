//! Sagas: every mishap at every step of a saga of five, two of them side by side, with a crash before and after every event.

#[allow(dead_code, reason = "each test file uses its part of the house")]
mod house;

use std::collections::BTreeSet;

use house::{Deed, House, Manner, id, reason, step, submit};
use unanimity_engine::{
    AbortCode, Input, Moment, StepDefinition,
    StepKind::{self, Compensatable, Pivot, Retriable},
    StepWork, Ticket, TransactionState,
};

/// `a`, then `b` and `c` side by side, then `d`, then `e`.
const ORDER: [(&str, &[&str]); 5] = [
    ("a", &[]),
    ("b", &["a"]),
    ("c", &["a"]),
    ("d", &["b", "c"]),
    ("e", &["d"]),
];

/// Which of the five may be undone.
#[derive(Clone, Copy, Debug)]
enum Shape {
    AllCompensatable,
    WithPivot,
    /// `d` is compensatable and `e` retriable.
    WithoutPivot,
}

impl Shape {
    fn steps(self) -> Vec<StepDefinition> {
        let kind = |index| match (self, index) {
            (Shape::WithPivot, 3) => Pivot,
            (Shape::WithPivot | Shape::WithoutPivot, 4) => Retriable,
            _ => Compensatable,
        };
        let steps = ORDER.iter().enumerate();
        steps
            .map(|(index, (name, after))| step(name, kind(index), after))
            .collect()
    }

    fn kind(self, name: &str) -> StepKind {
        let found = self.steps().into_iter().find(|s| s.name.as_str() == name);
        found.expect("one of the five").kind
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Mishap {
    Nothing,
    Refusal(usize),
    FailsOnce(usize),
    Exhaustion(usize),
    AnswerLost(usize),
    AnswersLostForGood(usize),
    /// A client cancels before this event.
    Cancel(usize),
    /// The saga's time is up before this event.
    Deadline(usize),
    SessionLost(usize, usize),
    /// The answer of this step is lost, and a client cancels before this event.
    LostAndCancelled(usize, usize),
}

fn house(mishap: Mishap, settles: bool) -> House {
    let manner = |index| match mishap {
        Mishap::Refusal(at) if at == index => Manner::Refuses,
        Mishap::FailsOnce(at) if at == index => Manner::Fails(1),
        Mishap::Exhaustion(at) if at == index => Manner::Fails(5),
        Mishap::AnswerLost(at) | Mishap::LostAndCancelled(at, _) if at == index => {
            Manner::Mumbles(1)
        }
        Mishap::AnswersLostForGood(at) if at == index => Manner::Mumbles(9),
        _ => Manner::Does,
    };
    let sites: Vec<_> = ORDER
        .iter()
        .enumerate()
        .map(|(index, (name, _))| (*name, manner(index), settles))
        .collect();
    House::new(&sites)
}

/// Runs it, with a crash before event `crash` (or none). Says how many events there were.
fn run(shape: Shape, mishap: Mishap, settles: bool, crash: Option<(usize, bool)>) -> usize {
    let mut house = house(mishap, settles);
    house.give(Input::SubmitSaga(submit(1, shape.steps())));
    let mut events = 0;
    loop {
        match mishap {
            Mishap::Cancel(at) | Mishap::LostAndCancelled(_, at) if at == events => {
                let (ticket, reason) = (Ticket(50), reason(AbortCode::Client));
                house.give(Input::Abort {
                    ticket,
                    transaction: id(1),
                    reason,
                });
            }
            Mishap::Deadline(at) if at == events => house.now = Moment(house.now.0 + 60_000),
            Mishap::SessionLost(site, at) if at == events => house.cut_session(site),
            _ => {}
        }
        if let Some((at, late)) = crash
            && at == events
        {
            house.crash(late);
            let mut again = submit(2, shape.steps());
            again.unique = 99 << 80;
            house.give(Input::SubmitSaga(again));
            house.deliver_strays();
        }
        if !house.step() {
            break;
        }
        events += 1;
        assert!(events < 3_000, "it never ends: {:?}", house.deeds);
    }
    check(
        &house,
        shape,
        &format!("{shape:?} {mishap:?} settles {settles} crash {crash:?}"),
    );
    if crash.is_none() {
        check_forced(&house, mishap);
        if let Mishap::Cancel(_) = mishap {
            check_cancel(&house, &format!("{shape:?} {mishap:?}"));
        }
    }
    events
}

fn check(house: &House, shape: Shape, case: &str) {
    let deeds = &house.deeds;
    let state = house
        .state(2)
        .or(house.state(1))
        .unwrap_or_else(|| panic!("{case}: no answer"));
    if let (Some(first), Some(second)) = (house.state(1), house.state(2)) {
        assert_eq!(first, second, "{case}: told one thing, then another");
    }
    let did: Vec<_> = deeds
        .iter()
        .filter_map(|d| {
            if let Deed::Did(s) = d {
                Some(s.as_str())
            } else {
                None
            }
        })
        .collect();
    let undid: Vec<_> = deeds
        .iter()
        .filter_map(|d| {
            if let Deed::Undid(s) = d {
                Some(s.as_str())
            } else {
                None
            }
        })
        .collect();
    let distinct = |names: &[&str]| names.iter().collect::<BTreeSet<_>>().len() == names.len();
    assert!(
        distinct(&did) && distinct(&undid),
        "{case}: twice: {deeds:?}"
    );
    for (index, name) in did.iter().enumerate() {
        let (_, after) = ORDER
            .iter()
            .find(|(n, _)| n == name)
            .expect("one of the five");
        assert!(
            after.iter().all(|before| did[..index].contains(before)),
            "{case}: out of order: {deeds:?}"
        );
    }
    match state {
        TransactionState::Committed => {
            assert_eq!(
                (did.len(), undid.len()),
                (5, 0),
                "{case}: not whole: {deeds:?}"
            );
        }
        TransactionState::Compensated => {
            let kind = |name: &&&str| shape.kind(name) == Compensatable;
            assert!(
                did.iter().all(|name| kind(&name)),
                "{case}: past the pivot: {deeds:?}"
            );
            assert_eq!(
                did.iter().collect::<BTreeSet<_>>(),
                undid.iter().collect(),
                "{case}: not undone: {deeds:?}"
            );
            for (index, name) in undid.iter().enumerate() {
                let followers = ORDER
                    .iter()
                    .filter(|(n, after)| after.contains(name) && did.contains(n));
                for (follower, _) in followers {
                    assert!(
                        undid[..index].contains(follower),
                        "{case}: undone out of order: {deeds:?}"
                    );
                }
            }
        }
        other => panic!("{case}: {other:?}: {deeds:?}"),
    }
    assert_eq!(house.engine.in_flight(), 0, "{case}");
}

/// Whoever cancelled hears of it.
fn check_cancel(house: &House, case: &str) {
    let told = house.told(50).is_some() || house.refused(50).is_some();
    assert!(told, "{case}: the cancel got no answer");
}

fn check_forced(house: &House, mishap: Mishap) {
    let expected = match house.state(1) {
        Some(TransactionState::Committed) => 1,
        _ => 2,
    };
    assert_eq!(house.forced, expected, "{mishap:?}");
}

fn check_with_crashes(shape: Shape, mishap: Mishap, settles: bool) {
    let events = run(shape, mishap, settles, None);
    for at in 0..=events {
        for late in [false, true] {
            run(shape, mishap, settles, Some((at, late)));
        }
    }
}

fn everywhere(shape: Shape, settles: bool) {
    check_with_crashes(shape, Mishap::Nothing, settles);
    for at in 0..5 {
        check_with_crashes(shape, Mishap::FailsOnce(at), settles);
        check_with_crashes(shape, Mishap::AnswerLost(at), settles);
        let fallible = !matches!(shape.steps()[at].kind, Retriable);
        if fallible {
            check_with_crashes(shape, Mishap::Refusal(at), settles);
            check_with_crashes(shape, Mishap::Exhaustion(at), settles);
        }
        if fallible && settles {
            check_with_crashes(shape, Mishap::AnswersLostForGood(at), settles);
        }
    }
    let events = run(shape, Mishap::Nothing, settles, None);
    for at in 0..events {
        check_with_crashes(shape, Mishap::Cancel(at), settles);
        check_with_crashes(shape, Mishap::Deadline(at), settles);
        for site in 0..5 {
            run(shape, Mishap::SessionLost(site, at), settles, None);
            run(shape, Mishap::LostAndCancelled(site, at), settles, None);
        }
    }
}

#[test]
fn every_mishap_at_every_step_leaves_all_or_nothing_where_all_can_be_undone() {
    everywhere(Shape::AllCompensatable, true);
}

#[test]
fn every_mishap_at_every_step_leaves_all_or_nothing_around_a_pivot() {
    everywhere(Shape::WithPivot, true);
}

#[test]
fn every_mishap_at_every_step_leaves_all_or_nothing_before_a_retriable_step() {
    everywhere(Shape::WithoutPivot, true);
}

#[test]
fn participants_that_can_not_settle_leave_all_or_nothing_too() {
    everywhere(Shape::AllCompensatable, false);
    everywhere(Shape::WithPivot, false);
    everywhere(Shape::WithoutPivot, false);
}

/// `a` and `b` are compensatable, then `x` and `y` commit together, then `e` is retriable.
fn mixed() -> Vec<StepDefinition> {
    let mut group = step("g", Pivot, &[]);
    group.work = StepWork::Group(vec![
        (house::name("x"), house::work()),
        (house::name("y"), house::work()),
    ]);
    vec![
        step("a", Compensatable, &[]),
        step("b", Compensatable, &["a"]),
        group,
        step("e", Retriable, &[]),
    ]
}

fn run_mixed(
    manner: Manner,
    reads_only: bool,
    cancel: Option<usize>,
    crash: Option<usize>,
) -> usize {
    let case = format!("{manner:?} reads only {reads_only} cancel {cancel:?} crash {crash:?}");
    let does = |name| (name, Manner::Does, true);
    let mut house = House::new(&[
        does("a"),
        does("b"),
        does("x"),
        ("y", manner, true),
        does("e"),
    ]);
    for site in &mut house.sites {
        site.reads_only = reads_only;
    }
    house.give(Input::SubmitSaga(submit(1, mixed())));
    let mut events = 0;
    loop {
        if cancel == Some(events) {
            let (ticket, reason) = (Ticket(50), reason(AbortCode::Client));
            house.give(Input::Abort {
                ticket,
                transaction: id(1),
                reason,
            });
        }
        if crash == Some(events) {
            house.crash(false);
            let mut again = submit(2, mixed());
            again.unique = 99 << 80;
            house.give(Input::SubmitSaga(again));
        }
        if !house.step() {
            break;
        }
        events += 1;
    }
    let state = house
        .state(2)
        .or(house.state(1))
        .unwrap_or_else(|| panic!("{case}: no answer"));
    if let (Some(first), Some(second)) = (house.state(1), house.state(2)) {
        assert_eq!(first, second, "{case}: told one thing, then another");
    }
    let count = |deed: &Deed| house.deeds.iter().filter(|d| *d == deed).count();
    let did = |name: &str| count(&Deed::Did(name.into()));
    let undid = |name: &str| count(&Deed::Undid(name.into()));
    let group = usize::from(!reads_only);
    let steps = ["a", "b", "e"];
    match state {
        TransactionState::Committed => {
            assert_eq!(
                [did("x"), did("y")],
                [group, group],
                "{case}: {:?}",
                house.deeds
            );
            assert!(
                steps.iter().all(|s| did(s) == 1 && undid(s) == 0),
                "{case}: {:?}",
                house.deeds
            );
        }
        TransactionState::Compensated => {
            assert_eq!(
                [did("x"), did("y"), did("e")],
                [0, 0, 0],
                "{case}: {:?}",
                house.deeds
            );
            assert!(
                steps.iter().all(|s| did(s) == undid(s) && did(s) <= 1),
                "{case}: {:?}",
                house.deeds
            );
        }
        other => panic!("{case}: {other:?}"),
    }
    assert_eq!(house.engine.in_flight(), 0, "{case}");
    if crash.is_none() && state == TransactionState::Committed {
        assert_eq!(
            house.forced, 2,
            "{case}: the beginning, and the group's commit"
        );
    }
    events
}

#[test]
fn an_atomic_group_in_a_saga_commits_everywhere_or_nowhere() {
    for (manner, reads_only) in [
        (Manner::Does, false),
        (Manner::Does, true),
        (Manner::Fails(1), false),
        (Manner::Fails(9), false),
        (Manner::Refuses, false),
    ] {
        let events = run_mixed(manner, reads_only, None, None);
        for at in 0..=events {
            run_mixed(manner, reads_only, None, Some(at));
            run_mixed(manner, reads_only, Some(at), None);
            run_mixed(manner, reads_only, Some(at), Some(at + 1));
        }
    }
}
