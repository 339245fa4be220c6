//! Sagas: narrow moments, one test for each.

#[allow(dead_code, reason = "each test file uses its part of the house")]
mod house;

use house::{Deed, House, Manner, id, lock, step, submit};
use unanimity_engine::{Input, StepKind::Compensatable, TransactionState};

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
