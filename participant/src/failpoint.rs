//! Points at which an agent can be told to kill itself, so that a harness can crash it at each moment that matters.
//!
//! Without the feature `failpoints` a point is nothing at all. With it, the process arms at its start what the environment names; see the
//! crate `unanimity-failpoint`. Most stand on the way that is the same over every database; what only one of them does bears its name.

/// A point; without the feature, nothing.
macro_rules! failpoint {
    ($name:literal) => {{
        #[cfg(feature = "failpoints")]
        unanimity_failpoint::reach($name);
    }};
}

/// Every point, in the order in which a branch meets them.
#[cfg(any(test, feature = "failpoints"))]
pub const FAILPOINTS: &[&str] = &[
    "participant.session.hello",
    "participant.session.welcomed",
    "participant.work.received",
    "participant.branch.begun",
    "participant.operation.ran",
    "participant.read-only.ended",
    "participant.prepare.before",
    "participant.sqlite.journal.written",
    "participant.prepare.after",
    "participant.marker.written",
    "participant.one-phase.before",
    "participant.one-phase.after",
    "participant.undo.before",
    "participant.answer.before",
    "participant.commit.before",
    "participant.mysql.finish.bound",
    "participant.mysql.finish.detached",
    "participant.sqlite.journal.clear",
    "participant.commit.after",
    "participant.abort.before",
    "participant.abort.after",
    "participant.prove.after",
    "participant.sqlite.replay.before",
    "participant.sqlite.replay.after",
    "participant.step.marked",
    "participant.step.commit.before",
    "participant.step.commit.after",
    "participant.step.settled",
    "participant.http.journal.before",
    "participant.http.journal.after",
    "participant.http.answered",
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::FAILPOINTS;

    #[test]
    fn every_listed_point_is_in_the_source_once_and_every_one_in_the_source_is_listed() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let (found, twice) = unanimity_failpoint::in_sources(&source).expect("the sources");
        assert_eq!(twice, Vec::<String>::new());
        let listed: BTreeSet<String> = FAILPOINTS.iter().map(|&name| name.into()).collect();
        assert_eq!(found, listed);
    }
}
