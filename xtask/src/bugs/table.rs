//! The seeded bugs: what each does wrong, and what must catch it.
//!
//! The name is that of the site in the product's code, `cfg!(unanimity_bug = "…")`; a test below holds both together.

use super::harness::Harness;

/// A mistake that can be compiled in.
pub(crate) struct Bug {
    /// Of the site.
    pub(crate) name: &'static str,
    /// What it does wrong.
    pub(crate) mistake: &'static str,
    pub(crate) harness: Harness,
    /// The invariant, or the test, that the harness must name.
    pub(crate) shows: &'static str,
}

const LOG: &str = "--package unanimity-wal";
const PROCESSES: &str =
    "--package unanimity-coordinator --package unanimity-participant --package unanimity-tests";

const WAL: Harness = tests("log", LOG, "--lib");
const CRASH_STATES: Harness = Harness::Program {
    name: "crash states",
    package: "unanimity-crash-states",
    arguments: "--recoveries 0 --run append --run rotate --run trim --run reopen",
};
const SIM: Harness = Harness::Program {
    name: "sim",
    package: "unanimity-sim",
    arguments: "--seeds 0..300",
};
const MODEL_LOST: Harness = model("--configuration lost");
const MODEL_ONE_PHASE: Harness = model("--configuration one-phase");
const MODEL_STRANGERS: Harness = model("--configuration strangers");
const POSTGRES: Harness = tests("postgres", PROCESSES, "--test resource_postgres");
const MARIADB: Harness = tests("mariadb", PROCESSES, "--test resource_mariadb");
const SQLITE: Harness = tests("sqlite", PROCESSES, "--test resource_sqlite");
const FORCED_WRITES: Harness = processes("forced writes", "--test forced_writes");
const PARTICIPANTS: Harness = processes("participants", "--test participants");

const fn model(arguments: &'static str) -> Harness {
    Harness::Program {
        name: "model",
        package: "unanimity-model",
        arguments,
    }
}

const fn tests(name: &'static str, packages: &'static str, target: &'static str) -> Harness {
    Harness::Tests {
        name,
        packages,
        target,
        with_programs: false,
    }
}

/// Tests that start our programs.
const fn processes(name: &'static str, target: &'static str) -> Harness {
    Harness::Tests {
        name,
        packages: PROCESSES,
        target,
        with_programs: true,
    }
}

const fn bug(
    name: &'static str,
    mistake: &'static str,
    harness: Harness,
    shows: &'static str,
) -> Bug {
    Bug {
        name,
        mistake,
        harness,
        shows,
    }
}

/// All of them, by the crate that each is in.
#[rustfmt::skip]
pub(crate) const BUGS: &[Bug] = &[
    // The log.
    bug("append-not-synced", "an append returns without a sync",
        CRASH_STATES, "was acknowledged"),
    bug("goes-on-after-failure", "a failed write or sync does not poison the log",
        WAL, "a_failed_write_poisons_the_log"),
    bug("directory-not-synced", "names of segments are not made durable",
        CRASH_STATES, "the log had the id"),
    bug("header-not-synced", "a segment is put into service before its header is durable",
        CRASH_STATES, "verify refuses: the log is damaged"),
    bug("checksum-ignored", "a frame counts whatever its checksum says",
        CRASH_STATES, "is another one"),
    bug("cut-past-valid", "a damaged batch is cut off together with the sound ones behind it",
        WAL, "a_sound_frame_further_on_is_damage"),
    bug("trim-too-far", "trimming deletes segments that hold live records",
        CRASH_STATES, "was to be kept"),
    bug("told-before-durable", "the log thread says that records are durable before it writes them",
        FORCED_WRITES, "nobody_is_told_of_a_commit_before_its_sync_has_returned"),
    // The engine: transactions.
    bug("hold-back-skipped", "commits are sent and told before the decision is durable",
        SIM, "durable_before_told is broken"),
    bug("commit-forgotten", "recovery forgets the newest transaction",
        SIM, "saga_order is broken"),
    bug("request-id-forgotten", "recovery forgets under which request a transaction committed",
        SIM, "exactly_once is broken"),
    bug("checkpoint-drops-decided", "a checkpoint leaves out what is decided and not delivered",
        SIM, "decision_stable is broken"),
    bug("trim-before-durable", "old segments go before the checkpoint's end is durable",
        SIM, "it_boots is broken"),
    bug("vote-after-decision", "a vote that comes after the abort counts",
        SIM, "decision_stable is broken"),
    bug("deadline-aborts-decided", "a deadline aborts what is on its way to the log as a commit",
        SIM, "agreement is broken"),
    bug("lost-session-aborts", "a decided branch whose session is lost counts as aborted",
        MODEL_LOST, "\"everything settles\" is broken"),
    bug("unknown-is-done", "a branch that is lost counts as committed",
        SIM, "unknown_is_not_done is broken"),
    bug("other-logs-presumed", "branches of another log are presumed aborted",
        SIM, "presume_abort_only_for_ours is broken"),
    bug("newer-epochs-presumed", "branches of a newer epoch are presumed aborted",
        MODEL_STRANGERS, "\"strangers untouched\" is broken"),
    bug("one-phase-presumed-aborted", "a one-phase commit whose session is lost is taken for an abort",
        MODEL_ONE_PHASE, "\"a decision is stable\" is broken"),
    bug("one-phase-not-asked", "what the log doesn't know is aborted, and nobody is asked for a one-phase commit",
        MODEL_ONE_PHASE, "\"a decision is stable\" is broken"),
    bug("capacity-ignored", "participants are sent more branches than they have room for",
        SIM, "admission is broken"),
    bug("retry-forgotten", "a decision that was not answered is not sent again",
        SIM, "liveness is broken"),
    // The engine: sagas.
    bug("turn-before-answer", "a saga turns back before every step has answered",
        SIM, "boundedness is broken"),
    bug("turn-not-forced", "compensations are sent before the turn is durable",
        SIM, "saga_order is broken"),
    bug("doubt-forgotten", "a step of which nobody knows counts as never done",
        SIM, "decision_stable is broken"),
    bug("undone-out-of-order", "compensations do not wait for those of later steps",
        SIM, "saga_order is broken"),
    bug("locks-released-early", "a saga that turns back lets its locks go before it is undone",
        SIM, "lock_exclusion is broken"),
    // Agents.
    bug("change-voted-read-only", "on PostgreSQL a branch that changed rows votes read-only, and is committed at once",
        POSTGRES, "aborts_what_it_prepared"),
    bug("prepare-not-read-back", "PostgreSQL's answer to a PREPARE is believed",
        POSTGRES, "believes_no_prepare_that_postgresql_turned_into_a_rollback"),
    bug("postgres-unknown-is-done", "on PostgreSQL a branch that is not prepared any more counts as committed",
        POSTGRES, "tells_a_rollback_by_hand_from_a_commit_by_hand"),
    bug("proof-does-not-fence", "on PostgreSQL the question for a proof leaves no tombstone",
        POSTGRES, "fences_a_one_phase_commit_that_comes_after_the_proof"),
    bug("late-prepare-accepted", "an agent forgets that it aborted a branch before its prepare came",
        POSTGRES, "refuses_a_prepare_that_comes_after_the_abort"),
    bug("one-phase-not-marked", "a one-phase commit writes no marker row",
        POSTGRES, "commits_a_request_id_once_in_one_phase"),
    bug("token-not-checked", "a step passes although its lock has a newer holder",
        POSTGRES, "a_newer_holder_of_a_lock_bars_the_older"),
    bug("compensated-twice", "a compensation writes no marker row, and so runs each time it comes",
        POSTGRES, "a_compensation_undoes_once"),
    bug("empty-compensation-runs", "what never took effect is undone all the same",
        POSTGRES, "an_empty_compensation_bars_the_late_step"),
    bug("failure-voted-yes", "a branch votes yes although a statement of it failed",
        MARIADB, "leaves_nothing_behind_when_it_refuses"),
    bug("mariadb-unknown-is-done", "on MariaDB a branch that is not prepared any more counts as committed",
        MARIADB, "tells_a_rollback_by_hand_from_a_commit_by_hand"),
    bug("journal-not-synced", "on SQLite a vote is given before the journal is durable",
        PARTICIPANTS, "an_agent_whose_journal_can_not_be_synced_votes_no_until_it_is_restarted"),
    bug("journal-applied-twice", "on SQLite a journal is applied again although its branch has committed",
        SQLITE, "a_journal_that_was_not_cleared_after_the_commit_is_recognised_by_the_marker"),
];

impl Bug {
    /// In a line.
    pub(crate) fn described(&self) -> String {
        let Bug {
            name,
            mistake,
            harness,
            shows,
        } = self;
        format!("{name:26} {mistake}\n{:26} {}: {shows}", "", harness.name())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;
    use crate::harness::root;

    const MARK: &str = "unanimity_bug = \"";

    /// The names in the sources below a directory.
    fn sites(directory: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                sites(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let names = text.split(MARK).skip(1);
                found.extend(names.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }

    #[test]
    fn every_seeded_bug_has_a_site_and_every_site_is_in_the_table() {
        let mut found = BTreeSet::new();
        for crate_directory in ["coordinator", "participant"] {
            sites(&root().join(crate_directory), &mut found);
        }
        let known: BTreeSet<String> = BUGS.iter().map(|bug| bug.name.to_owned()).collect();
        assert_eq!(known.len(), BUGS.len(), "a name stands there twice");
        assert_eq!(found, known, "sites on the left, the table on the right");
    }
}
