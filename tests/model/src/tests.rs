//! The small worlds hold, and the checker bites: a participant or a driver that breaks its word is found out.

use crate::{
    action::Action,
    configuration::{self, Configuration, Driver},
    model::{Findings, explore},
    site::Manner,
    world::World,
};

fn world(name: &str) -> Configuration {
    let mut all = configuration::all().into_iter();
    all.find(|each| each.name == name).expect("a configuration")
}

fn is_broken(findings: &Findings, promise: &str) -> bool {
    findings
        .breaches
        .iter()
        .any(|breach| breach.promise == promise)
}

#[test]
fn the_smallest_worlds_keep_every_promise() {
    for name in ["strangers", "lost", "slow", "capacity"] {
        let findings = explore(&world(name), 2);
        assert!(
            findings.breaches.is_empty(),
            "{name}: {:#?}",
            findings.breaches
        );
        assert!(findings.unseen.is_empty(), "{name}: {:?}", findings.unseen);
        assert!(findings.unique_states > 100, "{name}: {findings:?}");
    }
}

#[test]
fn a_participant_that_votes_yes_and_keeps_nothing_is_found_out() {
    let mut lying = world("slow");
    lying.sites[1].manners = vec![Manner::Lies];
    lying.seen.clear();
    let findings = explore(&lying, 1);
    assert!(is_broken(&findings, "a decision is stable"), "{findings:?}");
}

#[test]
fn a_driver_that_says_durable_before_the_sync_is_found_out_by_a_shortest_trace() {
    let mut early = world("lost");
    early.driver = Driver::SpeaksEarly;
    let findings = explore(&early, 1);
    assert!(is_broken(&findings, "durable before told"), "{findings:?}");
    let trace = &findings.breaches[0].trace;
    assert!(trace.len() <= 7, "{trace:#?}");
    assert!(trace[0].contains("submits"), "{trace:#?}");
}

#[test]
fn a_world_in_which_nothing_happens_proves_nothing() {
    let mut idle = world("slow");
    idle.requests[0].sends = 0;
    let findings = explore(&idle, 1);
    assert_eq!(findings.unseen, idle.seen);
}

#[test]
fn the_same_events_lead_to_the_same_state() {
    let configuration = world("capacity");
    let run = || {
        let mut world = World::new(&configuration);
        for _ in 0..60 {
            let mut actions: Vec<Action> = Vec::new();
            crate::action::possible(&configuration, &world, &mut actions);
            let Some(action) = actions.last().copied() else {
                break;
            };
            crate::action::happen(&configuration, &mut world, action);
        }
        world
    };
    assert!(run() == run());
}
