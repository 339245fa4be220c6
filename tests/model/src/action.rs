//! What can happen next, and how a trace tells it.

use unanimity_engine::{BranchKey, Downward, Upward};

use crate::{
    configuration::{Ask, Configuration},
    site::{Local, Manner},
    world::{World, short},
};

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Ask(usize),
    Execute(usize),
    Commit(usize),
    Abort(usize),
    Sync(usize),
    /// A site, a message, what it makes of it, and whether it will come again.
    Work(usize, usize, Manner, bool),
    Hear(usize),
    Open(usize),
    Cut(usize),
    CrashSite(usize),
    /// With so many un-synced records on disk.
    Crash(usize),
    Checkpoint,
    Tick,
}

/// Everything that can happen in a state.
pub(crate) fn possible(configuration: &Configuration, world: &World, actions: &mut Vec<Action>) {
    if world.wrong.is_some() {
        return;
    }
    let serving = world.coordinator.is_serving();
    for index in (0..world.clients.len()).filter(|_| serving) {
        calls(configuration, world, index, actions);
    }
    let (synced, appended) = (world.coordinator.synced, world.coordinator.appended());
    actions.extend((synced + 1..=appended).map(Action::Sync));
    for site in 0..world.sites.len() {
        deliveries(configuration, world, site, actions);
    }
    let left = world.left;
    if left.crashes > 0 {
        actions.extend((0..=appended - synced).map(Action::Crash));
    }
    if left.checkpoints > 0 && serving {
        actions.push(Action::Checkpoint);
    }
    if left.ticks > 0 && serving {
        actions.push(Action::Tick);
    }
}

fn calls(configuration: &Configuration, world: &World, index: usize, actions: &mut Vec<Action>) {
    let (request, client) = (&configuration.requests[index], &world.clients[index]);
    // Requests that are alike are first sent in their order: any other is the same with the names changed.
    let earlier = configuration.requests[..index].iter().zip(&world.clients);
    let in_order = |(other, client): (&crate::configuration::Request, &crate::client::Client)| {
        client.sent > 0 || other.ask != request.ask
    };
    let first = client.sent == 0;
    if client.sent < request.sends && (!first || earlier.into_iter().all(in_order)) {
        actions.push(Action::Ask(index));
    }
    if let (Ask::Interactive(_, used), Some(id), None, false) =
        (&request.ask, client.open, client.busy, client.closed)
    {
        if client.done(id) < used.len() {
            actions.push(Action::Execute(index));
        }
        // It may do less the first time than when it begins again.
        if client.done(id) > 0 {
            actions.push(Action::Commit(index));
        }
    }
    if world.left.aborts > 0 && !first {
        actions.push(Action::Abort(index));
    }
}

fn deliveries(
    configuration: &Configuration,
    world: &World,
    index: usize,
    actions: &mut Vec<Action>,
) {
    let site = &world.sites[index];
    let mut fresh = 0;
    for (at, (session, message)) in site.inbox.iter().enumerate() {
        if Some(*session) == site.session {
            fresh += 1;
            if fresh > 1 && !configuration.network.reorders {
                continue;
            }
        }
        if site.inbox[..at]
            .iter()
            .any(|(s, m)| (s, m) == (session, message))
        {
            continue;
        }
        for manner in manners(configuration, world, index, message) {
            actions.push(Action::Work(index, at, manner, false));
            if world.left.repeats > 0 && !matches!(message, Downward::ListInDoubt) {
                actions.push(Action::Work(index, at, manner, true));
            }
        }
    }
    if !site.outbox.is_empty() {
        actions.push(Action::Hear(index));
    }
    match site.session {
        None if !world.coordinator.is_serving() => {}
        None => actions.push(Action::Open(index)),
        Some(_) if world.left.cuts > 0 => actions.push(Action::Cut(index)),
        Some(_) => {}
    }
    if world.left.site_crashes > 0 {
        actions.push(Action::CrashSite(index));
    }
}

/// What a participant may make of a message.
fn manners(
    configuration: &Configuration,
    world: &World,
    index: usize,
    message: &Downward,
) -> Vec<Manner> {
    let (site, traits) = (&world.sites[index], &configuration.sites[index]);
    let prepared = |key: &BranchKey| matches!(site.branches.get(key), Some(Local::Prepared(_)));
    let mut manners = match message {
        Downward::Prepare { key, .. } => match site.branches.get(key) {
            None if !site.markers.contains_key(key) => traits.manners.clone(),
            Some(Local::Open) => vec![Manner::Well],
            _ => vec![Manner::Well],
        },
        Downward::Execute { .. } => traits.manners.clone(),
        Downward::RunStep {
            key,
            compensates: None,
            ..
        } if !site.markers.contains_key(key) => traits.manners.clone(),
        _ => vec![Manner::Well],
    };
    let may_wait = match message {
        Downward::Commit { key, .. } => prepared(key),
        Downward::RunStep { key, .. } => !site.markers.contains_key(key),
        _ => false,
    };
    if world.left.laters > 0 && may_wait {
        manners.push(Manner::Later);
    }
    if world.left.losses > 0 && matches!(message, Downward::Commit { key, .. } if prepared(key)) {
        manners.push(Manner::Loses);
    }
    manners
}

/// Makes it happen.
pub(crate) fn happen(configuration: &Configuration, world: &mut World, action: Action) {
    match action {
        Action::Ask(index) => world.ask(configuration, index),
        Action::Execute(index) => world.execute(configuration, index),
        Action::Commit(index) => world.commit(configuration, index),
        Action::Abort(index) => {
            world.left.aborts -= 1;
            world.abort(configuration, index);
        }
        Action::Sync(upto) => world.sync(configuration, upto),
        Action::Work(site, message, manner, again) => {
            world.left.repeats -= u8::from(again);
            world.left.laters -= u8::from(manner == Manner::Later);
            world.left.losses -= u8::from(manner == Manner::Loses);
            world.work(site, message, manner, again);
        }
        Action::Hear(site) => world.hear(configuration, site),
        Action::Open(site) => world.open(configuration, site),
        Action::Cut(site) => {
            world.left.cuts -= 1;
            world.cut(configuration, site, false);
        }
        Action::CrashSite(site) => {
            world.left.site_crashes -= 1;
            world.cut(configuration, site, true);
        }
        Action::Crash(kept) => {
            world.left.crashes -= 1;
            world.crash(configuration, kept);
        }
        Action::Checkpoint => {
            world.left.checkpoints -= 1;
            world.give(configuration, unanimity_engine::Input::Checkpoint);
        }
        Action::Tick => {
            world.left.ticks -= 1;
            world.tick(configuration);
        }
    }
}

/// What it does, in the state in which it happens.
pub(crate) fn describe(configuration: &Configuration, world: &World, action: Action) -> String {
    let name = |site: usize| configuration.sites[site].name.as_str();
    let client = |index: usize| format!("client {}", index + 1);
    match action {
        Action::Ask(index) => {
            let again = if world.clients[index].sent > 0 {
                " again"
            } else {
                ""
            };
            let what = match &configuration.requests[index].ask {
                Ask::Submit(_) => "submits its transaction",
                Ask::Interactive(..) => "begins its transaction",
                Ask::Saga(..) => "submits its saga",
            };
            format!("{} {what}{again}", client(index))
        }
        Action::Execute(index) => format!("{} runs an operation", client(index)),
        Action::Commit(index) => format!("{} asks for the commit", client(index)),
        Action::Abort(index) => format!("{} asks for the abort", client(index)),
        Action::Sync(upto) => format!("the disk has every record up to {upto}, and says so"),
        Action::Work(site, at, manner, again) => {
            let (session, message) = &world.sites[site].inbox[at];
            let stray = if Some(*session) == world.sites[site].session {
                ""
            } else {
                ", which comes late"
            };
            let copy = if again { ", which will come again" } else { "" };
            format!(
                "{} works off {}{stray}{copy}: {manner:?}",
                name(site),
                told(message)
            )
        }
        Action::Hear(site) => {
            let said = world.sites[site].outbox.front().map(said);
            format!(
                "the coordinator hears {} say {}",
                name(site),
                said.unwrap_or_default()
            )
        }
        Action::Open(site) => format!("{} opens a session", name(site)),
        Action::Cut(site) => format!("the session of {} breaks", name(site)),
        Action::CrashSite(site) => format!("{} dies", name(site)),
        Action::Crash(kept) => {
            let lost = world.coordinator.appended() - world.coordinator.synced - kept;
            format!(
                "the coordinator dies and starts again: of what was not synced {kept} records are there and {lost} are lost"
            )
        }
        Action::Checkpoint => "the log wants a checkpoint".into(),
        Action::Tick => "time passes, to the next deadline".into(),
    }
}

fn branch(key: BranchKey) -> String {
    format!("{}.{}", short(key.transaction), key.branch)
}

fn told(message: &Downward) -> String {
    match message {
        Downward::Prepare {
            key,
            one_phase: true,
            ..
        } => format!("commit in one phase {}", branch(*key)),
        Downward::Prepare { key, .. } => format!("prepare {}", branch(*key)),
        Downward::Commit { key, .. } => format!("commit {}", branch(*key)),
        Downward::Abort { key, .. } => format!("abort {}", branch(*key)),
        Downward::Execute { key, .. } => format!("execute {}", branch(*key)),
        Downward::RunStep {
            key,
            compensates: None,
            step,
            ..
        } => format!("do {step} {}", branch(*key)),
        Downward::RunStep { key, step, .. } => format!("undo {step} {}", branch(*key)),
        Downward::SettleStep { key, .. } => format!("settle {}", branch(*key)),
        Downward::Prove { key } => format!("prove {}", branch(*key)),
        Downward::ListInDoubt => "list in doubt".into(),
        Downward::Welcome(_) | Downward::Enlisted { .. } => "a greeting".into(),
    }
}

fn said(message: &Upward) -> String {
    match message {
        Upward::Vote { key, vote } => format!("{vote:?} to {}", branch(*key)),
        Upward::Completion { key, completion } | Upward::Proof { key, completion } => {
            format!("{completion:?} of {}", branch(*key))
        }
        Upward::Executed { key, result, .. } => {
            format!(
                "{} of an operation in {}",
                if result.is_ok() { "done" } else { "failed" },
                branch(*key)
            )
        }
        Upward::StepResult { key, outcome, .. } => format!("{outcome:?} of {}", branch(*key)),
        Upward::InDoubt(found) => format!("{} in doubt", found.len()),
        Upward::Enlist { .. } => "enlist".into(),
    }
}
