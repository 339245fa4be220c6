//! Worlds of transactions.

use crate::{
    configuration::{Ask, Configuration, Faults, Sight},
    site::Manner::{ReadsOnly, Refuses, Well},
};

const NONE: Faults = Faults {
    crashes: 0,
    cuts: 0,
    site_crashes: 0,
    ticks: 0,
    repeats: 0,
    laters: 0,
    aborts: 0,
    losses: 0,
    checkpoints: 0,
};

/// Well below a second.
pub(super) fn small() -> Vec<Configuration> {
    vec![
        strangers(),
        lost(),
        slow(),
        capacity(),
        withdrawn(),
        three(),
    ]
}

/// Seconds.
pub(super) fn large() -> Vec<Configuration> {
    vec![
        repeated(),
        checkpoint(),
        crossing(),
        late(),
        interactive(),
        opened(),
        one_phase(),
        read_only(),
        two_phase(),
    ]
}

/// Minutes, and some GB of memory.
pub(super) fn deep() -> Vec<Configuration> {
    let twice = Faults {
        crashes: 2,
        cuts: 1,
        ..NONE
    };
    let timed = Faults {
        crashes: 1,
        cuts: 1,
        ticks: 1,
        ..NONE
    };
    let most = Faults {
        laters: 1,
        aborts: 1,
        ..timed
    };
    let two_cuts = Faults {
        cuts: 2,
        ticks: 1,
        aborts: 1,
        ..twice
    };
    vec![
        three().deep("three-deep", "the same with deadlines", timed),
        crossing().deep("crossing-deep", "the same with two crashes", twice),
        two_phase().deep("two-phase-deep", "the same, and the client aborts", most),
        one_phase().deep("one-phase-deep", "the same with two cuts", two_cuts),
    ]
}

fn strangers() -> Configuration {
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        ticks: 2,
        ..NONE
    };
    Configuration::new(
        "strangers",
        "prepared branches of another log and of a newer epoch",
    )
    .sites(1, &[Well])
    .ask(Ask::Submit(vec![0]), 1, false)
    .faults(faults)
    .with_strangers()
    .seen(&[Sight::Commit])
}

fn lost() -> Configuration {
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        losses: 1,
        ..NONE
    };
    Configuration::new("lost", "a database loses a branch that was prepared")
        .sites(2, &[Well])
        .ask(Ask::Submit(vec![0, 1]), 1, false)
        .faults(faults)
        .seen(&[Sight::Commit, Sight::Heuristic])
}

fn slow() -> Configuration {
    let faults = Faults {
        ticks: 2,
        laters: 1,
        ..NONE
    };
    Configuration::new("slow", "deadlines come, and a participant is busy")
        .sites(2, &[Well])
        .ask(Ask::Submit(vec![0, 1]), 1, false)
        .faults(faults)
        .seen(&[Sight::Commit, Sight::Abort])
}

fn withdrawn() -> Configuration {
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        aborts: 1,
        ..NONE
    };
    Configuration::new("withdrawn", "a client aborts, at any time")
        .sites(2, &[Well])
        .ask(Ask::Submit(vec![0, 1]), 1, false)
        .faults(faults)
        .network(true, true)
        .seen(&[Sight::Commit, Sight::Abort])
}

fn one_phase() -> Configuration {
    let faults = Faults {
        crashes: 2,
        cuts: 1,
        ticks: 1,
        aborts: 1,
        ..NONE
    };
    Configuration::new(
        "one-phase",
        "a single branch, and its request sent again: markers, proof, fences",
    )
    .sites(1, &[Well, Refuses])
    .ask(Ask::Submit(vec![0]), 2, false)
    .faults(faults)
    .network(true, true)
    .seen(&[Sight::Commit, Sight::Abort])
}

fn repeated() -> Configuration {
    let faults = Faults {
        crashes: 2,
        cuts: 1,
        ..NONE
    };
    Configuration::new("repeated", "a request over two participants is sent again")
        .sites(2, &[Well, Refuses])
        .ask(Ask::Submit(vec![0, 1]), 2, false)
        .faults(faults)
        .seen(&[Sight::Commit, Sight::Abort, Sight::PreparedForgotten])
}

fn late() -> Configuration {
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        site_crashes: 1,
        repeats: 1,
        ..NONE
    };
    Configuration::new(
        "late",
        "messages come late and twice, a participant dies and forgets",
    )
    .sites(2, &[Well])
    .ask(Ask::Submit(vec![0, 1]), 1, false)
    .faults(faults)
    .network(true, true)
    .seen(&[Sight::Commit, Sight::Abort, Sight::InDoubtAfterRestart])
}

fn checkpoint() -> Configuration {
    let faults = Faults {
        crashes: 2,
        checkpoints: 1,
        ..NONE
    };
    Configuration::new(
        "checkpoint",
        "the log is checkpointed and trimmed while a decision is delivered",
    )
    .sites(2, &[Well])
    .ask(Ask::Submit(vec![0, 1]), 1, true)
    .faults(faults)
    .seen(&[Sight::Commit, Sight::TrimmedLive])
}

fn capacity() -> Configuration {
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        ..NONE
    };
    Configuration::new(
        "capacity",
        "two transactions and a participant that can hold one branch",
    )
    .sites(2, &[Well])
    .one(0, |site| site.capacity = 1)
    .ask(Ask::Submit(vec![0, 1]), 1, false)
    .ask(Ask::Submit(vec![0, 1]), 1, false)
    .faults(faults)
    .seen(&[Sight::Commit, Sight::InDoubtAfterRestart])
}

fn read_only() -> Configuration {
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        ..NONE
    };
    Configuration::new(
        "read-only",
        "three participants of which any may have changed nothing",
    )
    .sites(3, &[Well, ReadsOnly])
    .ask(Ask::Submit(vec![0, 1, 2]), 1, true)
    .faults(faults)
    .seen(&[Sight::Commit, Sight::PreparedForgotten])
}

fn three() -> Configuration {
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        ..NONE
    };
    Configuration::new("three", "a transaction over three participants")
        .sites(3, &[Well, Refuses])
        .ask(Ask::Submit(vec![0, 1, 2]), 1, false)
        .faults(faults)
        .seen(&[
            Sight::Commit,
            Sight::Abort,
            Sight::PreparedForgotten,
            Sight::InDoubtAfterRestart,
        ])
}

fn crossing() -> Configuration {
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        ..NONE
    };
    Configuration::new(
        "crossing",
        "two transactions over the same two participants",
    )
    .sites(2, &[Well, Refuses])
    .ask(Ask::Submit(vec![0, 1]), 1, false)
    .ask(Ask::Submit(vec![0, 1]), 1, false)
    .faults(faults)
    .seen(&[
        Sight::Commit,
        Sight::Abort,
        Sight::PreparedForgotten,
        Sight::InDoubtAfterRestart,
    ])
}

fn interactive() -> Configuration {
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        ticks: 1,
        ..NONE
    };
    Configuration::new(
        "interactive",
        "a transaction is opened, used, and committed, and begun again",
    )
    .sites(2, &[Well, Refuses])
    .one(1, |site| site.manners = vec![Well])
    .ask(Ask::Interactive(vec![0, 1], vec![0, 1]), 2, false)
    .faults(faults)
    .seen(&[Sight::Commit, Sight::Abort])
}

fn opened() -> Configuration {
    let faults = Faults {
        crashes: 2,
        cuts: 1,
        ticks: 1,
        ..NONE
    };
    Configuration::new(
        "opened",
        "an open transaction that uses one participant: one phase, and begun again",
    )
    .sites(2, &[Well])
    .one(0, |site| site.manners = vec![Well, Refuses])
    .ask(Ask::Interactive(vec![0, 1], vec![0]), 2, false)
    .faults(faults)
    .seen(&[Sight::Commit, Sight::Abort])
}

fn two_phase() -> Configuration {
    let faults = Faults {
        crashes: 1,
        cuts: 1,
        ticks: 1,
        laters: 1,
        ..NONE
    };
    Configuration::new(
        "two-phase",
        "a transaction over two participants, and all that can go wrong",
    )
    .sites(2, &[Well, Refuses])
    .ask(Ask::Submit(vec![0, 1]), 1, false)
    .faults(faults)
    .network(true, true)
    .seen(&[
        Sight::Commit,
        Sight::Abort,
        Sight::PreparedForgotten,
        Sight::InDoubtAfterRestart,
    ])
}
