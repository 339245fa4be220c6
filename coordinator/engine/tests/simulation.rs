//! The invariants of the design, over many seeded lives of a coordinator. A failing seed prints its trace; run it alone with
//! `UNANIMITY_SEED=<seed> cargo test -p unanimity-engine --test simulation`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod world;

use std::collections::{BTreeMap, BTreeSet};

use unanimity_engine::{Input, Ticket, TransactionState};
use world::{Local, World};

const SITES: [(&str, bool); 3] = [("alpha", true), ("beta", true), ("gamma", false)];

fn live(seed: u64) -> World {
    let mut world = World::new(seed, &SITES);
    for site in 0..SITES.len() {
        world.open(site);
    }
    world.sync();
    for step in 0..1_000 {
        act(&mut world, step);
    }
    world.settle();
    world
}

fn act(world: &mut World, step: u64) {
    let site = world.random.below(SITES.len() as u64) as usize;
    match world.random.below(200) {
        0..24 => submit(world, step),
        24..80 => world.site_step(site),
        80..136 => world.site_speak(site),
        136..178 => world.sync(),
        178..186 => {
            let ms = [1, 50, 2_000, 6_000][world.random.below(4) as usize];
            world.pass(ms);
        }
        186..188 => world.close(site),
        188..195 => world.open_again(site),
        195..197 => {
            world.close(site);
            world.sites[site].crash();
        }
        197 => world.restart(),
        _ => world.handle(Input::Checkpoint),
    }
}

fn submit(world: &mut World, step: u64) {
    let sites: &[usize] = [&[0][..], &[1], &[0, 1], &[1, 0], &[0, 1, 2], &[2, 0], &[2]]
        [world.random.below(7) as usize];
    // Sometimes an old request once more, with the same content.
    let request = match world.random.below(4) {
        0 => None,
        1 => Some(format!("r{}-{sites:?}", world.random.below(step + 1))),
        _ => Some(format!("r{step}-{sites:?}")),
    };
    world.submit(sites, request.as_deref());
}

fn check(name: &str, seeds: std::ops::Range<u64>, invariant: fn(&World) -> Result<(), String>) {
    let seeds = match std::env::var("UNANIMITY_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
    {
        Some(seed) => seed..seed + 1,
        None => seeds,
    };
    for seed in seeds {
        let world = live(seed);
        if let Err(problem) = invariant(&world) {
            let trace = world.trace.join("\n");
            panic!(
                "{trace}\n{name} is broken: {problem}\nrun it again: UNANIMITY_SEED={seed} cargo test -p unanimity-engine --test simulation {name}"
            );
        }
    }
}

#[test]
fn agreement_no_transaction_has_one_branch_committed_and_another_rolled_back() {
    check("agreement", 0..400, |world| {
        for (id, states) in world.outcomes() {
            let split = states.contains("Committed") && states.len() > 1;
            if split {
                return Err(format!("{id}: {states:?}"));
            }
        }
        if world.heuristics > 0 {
            return Err(format!(
                "{} heuristics, though nobody touched a database",
                world.heuristics
            ));
        }
        Ok(())
    });
}

#[test]
fn durability_what_a_client_heard_is_what_the_databases_hold() {
    check("durability", 2000..2400, |world| {
        let outcomes = world.outcomes();
        for (id, told) in &world.told {
            let committed = outcomes
                .get(id)
                .is_some_and(|states| states.contains("Committed"));
            let states = outcomes.get(id);
            match told {
                TransactionState::Committed if states.is_some() && !committed => {
                    return Err(format!("{id} was told committed: {states:?}"));
                }
                TransactionState::Aborted if committed => {
                    return Err(format!("{id} was told aborted"));
                }
                _ => {}
            }
        }
        Ok(())
    });
}

#[test]
fn liveness_once_faults_end_nothing_stays_in_doubt_and_everyone_is_answered() {
    check("liveness", 4000..4400, |world| {
        for site in &world.sites {
            if let Some((key, _)) = site.branches.iter().find(|(_, l)| **l == Local::Prepared) {
                return Err(format!("{key} is still in doubt at {}", site.name));
            }
        }
        match (world.engine.in_flight(), world.engine.undelivered()) {
            (0, 0) => Ok(()),
            left => Err(format!("{left:?} transactions in flight and undelivered")),
        }
    });
}

#[test]
fn exactly_once_a_request_id_commits_at_most_once() {
    check("exactly_once", 6000..6400, |world| {
        let mut requests: BTreeMap<&str, BTreeSet<_>> = BTreeMap::new();
        for (ticket, request) in &world.tickets {
            if let Some(id) = committed(world, ticket) {
                requests.entry(request).or_default().insert(id);
            }
        }
        match requests.iter().find(|(_, ids)| ids.len() > 1) {
            Some((request, ids)) => Err(format!("{request} committed as {ids:?}")),
            None => Ok(()),
        }
    });
}

fn committed(world: &World, ticket: &Ticket) -> Option<unanimity_engine::TransactionId> {
    match world.answers.get(ticket)? {
        Ok(unanimity_engine::Answer::Transaction(view))
            if world.told.get(&view.id) == Some(&TransactionState::Committed) =>
        {
            Some(view.id)
        }
        _ => None,
    }
}

#[test]
fn determinism_the_same_seed_gives_the_same_bytes() {
    for seed in 0..20 {
        let (first, second) = (live(seed), live(seed));
        assert_eq!(first.trace, second.trace);
        assert_eq!(first.disk, second.disk);
    }
}

#[test]
fn the_world_really_does_things() {
    let (mut committed, mut aborted, mut forced) = (0, 0, 0);
    for seed in 0..50 {
        let world = live(seed);
        committed += world
            .told
            .values()
            .filter(|s| **s == TransactionState::Committed)
            .count();
        aborted += world
            .told
            .values()
            .filter(|s| **s == TransactionState::Aborted)
            .count();
        forced += world.trace.iter().filter(|t| t.contains("restart")).count();
    }
    assert!(
        committed > 500 && aborted > 200 && forced > 50,
        "{committed} committed, {aborted} aborted, {forced} restarts"
    );
}
