//! Draws a plan from a seed.

use crate::{
    plan::{
        Act, Ask, Ends, Entry, Fault, HEALS_MS, Mishap, Plan, Request, Shape, SiteShape, Way,
        Workload, saga,
    },
    random::{Random, Stream},
    work::Work,
};

const NAMES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];

/// Accounts of each database.
pub(crate) const ACCOUNTS: usize = 4;

/// The same seed and workload give the same plan.
pub(crate) fn draw(seed: u64, workload: Workload) -> Plan {
    let mut random = Random::new(seed, Stream::Shape);
    let shape = shape(&mut random);
    // Most lives are short; a few have so many transactions that a checkpoint takes several steps.
    let long = random.one_in(100);
    let requests = if long {
        500
    } else {
        random.between(8, 40) as usize
    };
    let faults = random.between(0, 60) as usize;
    let mut entries = Vec::new();
    let mut random = Random::new(seed, Stream::Requests);
    for _ in 0..requests {
        let at = random.between(0, HEALS_MS - 2_000);
        let act = Act::Ask(request(&mut random, workload, &shape));
        entries.push((at, act));
    }
    let mut random = Random::new(seed, Stream::Faults);
    for _ in 0..faults {
        let at = random.between(100, HEALS_MS - 1_000);
        let fault = fault(&mut random, &shape);
        // A drain takes its time; it is to be over with all others.
        let latest = if matches!(fault, Fault::Drains { .. }) {
            HEALS_MS - 8_000
        } else {
            HEALS_MS
        };
        entries.push((at.min(latest), Act::Fault(fault)));
    }
    entries.sort_by_key(|(at, _)| *at);
    let entry = |(number, (at, act))| Entry { number, at, act };
    Plan {
        shape,
        entries: entries.into_iter().enumerate().map(entry).collect(),
    }
}

fn shape(random: &mut Random) -> Shape {
    let sites = random.between(2, 4) as usize;
    let site = |name: &&'static str, random: &mut Random| {
        let one_phase = random.below(3) > 0;
        SiteShape {
            name,
            one_phase,
            settles: random.below(4) > 0,
            proves: random.one_in(2),
            capacity: random.pick(&[1, 1, 2, 3, 8]),
            agents: random.pick(&[1, 1, 2]),
        }
    };
    Shape {
        sites: NAMES[..sites]
            .iter()
            .map(|name| site(name, random))
            .collect(),
        segment: random.pick(&[6, 12, 30, 80]),
        max_in_flight: random.pick(&[5, 20, 1_000]),
        max_remembered: random.pick(&[1_000, 1_000, 10]),
        latency: (1, random.pick(&[2, 10, 60])),
        sync_ms: random.pick(&[2, 10, 100]),
        locks: random.between(1, 4) as usize,
    }
}

fn request(random: &mut Random, workload: Workload, shape: &Shape) -> Request {
    let ask = match workload {
        Workload::Bank => transfer(random, shape),
        Workload::Interactive => interactive(random, shape),
        Workload::Saga => saga::draw(random, shape),
        Workload::Mixed => match random.below(10) {
            0..5 => transfer(random, shape),
            5..7 => interactive(random, shape),
            _ => saga::draw(random, shape),
        },
    };
    let timeout_ms = match &ask {
        Ask::Saga { .. } => random.pick(&[0, 2_000, 20_000, 600_000]),
        Ask::Submit(_) | Ask::Interactive { .. } => random.pick(&[300, 2_000, 5_000, 10_000]),
    };
    Request {
        keyed: random.below(5) > 0,
        early: random.one_in(3),
        timeout_ms,
        patience_ms: random.pick(&[500, 3_000, 12_000]),
        ask,
    }
}

/// Money goes from one account to another, most often to another bank; some banks are only asked for a balance.
fn transfer(random: &mut Random, shape: &Shape) -> Ask {
    let sites = shape.sites.len();
    let among = random.pick(&[1, 2, 2, 2, 3]).min(sites);
    let mut branches: Vec<(usize, Work)> = random
        .distinct(among, sites)
        .into_iter()
        .map(|site| (site, Work::reads()))
        .collect();
    if random.one_in(12) {
        return Ask::Submit(branches);
    }
    let amount = random.between(1, 60) as i64;
    let (from, to) = (random.below(among), random.below(among));
    let account = |random: &mut Random| random.below(ACCOUNTS) as u8;
    branches[from].1.join(Work::moves(account(random), -amount));
    branches[to].1.join(Work::moves(account(random), amount));
    branches[from].1.refused = random.one_in(15);
    Ask::Submit(branches)
}

fn interactive(random: &mut Random, shape: &Shape) -> Ask {
    let Ask::Submit(branches) = transfer(random, shape) else {
        return transfer(random, shape);
    };
    let mut sites: Vec<usize> = branches.iter().map(|(site, _)| *site).collect();
    let mut operations: Vec<(usize, Work)> = branches
        .into_iter()
        .filter(|_| random.below(8) > 0)
        .collect();
    // An operation left out would leave money made or lost, so then all of them only read.
    if operations.iter().map(|(_, work)| work.sum()).sum::<i64>() != 0 {
        operations
            .iter_mut()
            .for_each(|(_, work)| *work = Work::reads());
    }
    if let Some(again) = operations
        .first()
        .map(|(site, _)| *site)
        .filter(|_| random.one_in(3))
    {
        operations.push((again, Work::reads()));
    }
    if sites.len() > 1 && random.one_in(4) {
        sites.pop();
    }
    Ask::Interactive {
        sites,
        operations,
        ends: random.pick(&[
            Ends::Commits,
            Ends::Commits,
            Ends::Commits,
            Ends::Commits,
            Ends::Aborts,
            Ends::Vanishes,
        ]),
        enlists: random.one_in(4).then(|| random.below(shape.sites.len())),
    }
}

fn fault(random: &mut Random, shape: &Shape) -> Fault {
    let site = random.below(shape.sites.len());
    let agent = random.below(shape.sites[site].agents);
    let way = random.pick(&[Way::Up, Way::Down]);
    let down_ms = random.pick(&[50, 500, 3_000]);
    let noticed_ms = random.pick(&[1, 50, 6_000]);
    match random.below(34) {
        0..3 => Fault::CoordinatorDies {
            down_ms,
            keeps: random.between(0, 16),
            again: random.pick(&[0, 0, 0, 1, 2]),
            noticed_ms,
        },
        3 => Fault::SyncFails {
            down_ms,
            keeps: random.between(0, 16),
        },
        4 => Fault::SyncIsSlow {
            ms: random.pick(&[200, 2_000]),
        },
        5 => Fault::Drains { down_ms },
        6 => Fault::Checkpoints,
        7 | 8 => Fault::AgentDies {
            site,
            agent,
            down_ms,
            noticed_ms,
            late: random.one_in(2),
        },
        9 | 10 => Fault::SessionBreaks {
            site,
            agent,
            up_ms: noticed_ms,
            down_ms: random.pick(&[1, 50, 6_000]),
        },
        11 => Fault::Partition {
            site,
            agent,
            ms: random.pick(&[300, 3_000, 12_000]),
        },
        12 => Fault::DatabaseAway {
            site,
            ms: random.pick(&[300, 3_000, 12_000]),
        },
        13 => Fault::Drop { site, way },
        14 | 15 => Fault::Duplicate {
            site,
            way,
            after_ms: random.pick(&[0, 30, 3_000]),
        },
        16 | 17 => Fault::Delay {
            site,
            way,
            ms: random.pick(&[20, 300, 4_000]),
        },
        18 | 19 => Fault::WorkIsSlow {
            site,
            ms: random.pick(&[400, 3_000, 8_000]),
        },
        20 => Fault::Busy { site },
        21 => Fault::Conflict { site },
        22..25 => Fault::StepFails {
            site,
            mishap: random.pick(&[
                Mishap::Fails,
                Mishap::UnknownWithout,
                Mishap::UnknownWith,
                Mishap::Works,
                Mishap::SilentWithout,
                Mishap::SilentWith,
            ]),
        },
        25 => Fault::ByHand {
            site,
            commit: random.one_in(2),
        },
        26 => Fault::Foreign {
            site,
            newer: random.one_in(2),
        },
        27 | 28 => Fault::ReplyLost,
        29 => Fault::CallLost,
        30 => Fault::OperatorRetries,
        31 => Fault::OperatorResolves {
            commit: random.one_in(2),
        },
        32 => random.pick(&[Fault::OperatorResolvesStep, Fault::Lookup]),
        _ => Fault::Cancel,
    }
}
