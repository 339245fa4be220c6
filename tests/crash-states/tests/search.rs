//! The search finds nothing in real runs, and finds it out when a run leaves out anything that durability needs.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use tempfile::TempDir;
use unanimity_crash_states::campaign::Campaign;
use unanimity_crash_states::event::{Event, Word};
use unanimity_crash_states::image::Thoroughness;
use unanimity_crash_states::recording::{Fault, Recorder, Recording};
use unanimity_crash_states::reopen::Reopener;
use unanimity_crash_states::search::{Outcomes, Search};
use unanimity_crash_states::violation::{Violation, read_events};

const THOROUGHNESS: Thoroughness = Thoroughness {
    exhaustive: 256,
    random: 10,
};

fn recorder(scratch: &TempDir) -> Recorder<'_> {
    Recorder {
        program: Path::new(env!("CARGO_BIN_EXE_unanimity-crash-states")),
        scratch: scratch.path(),
    }
}

fn record(script: &str) -> Recording {
    let scratch = tempfile::tempdir().unwrap();
    recorder(&scratch).script(script, None).unwrap().unwrap()
}

/// The first promise that is broken in this run.
fn violation(recording: &Recording) -> Option<Violation> {
    let scratch = tempfile::tempdir().unwrap();
    let search = Search {
        outcomes: &Outcomes::default(),
        reopener: &Reopener::new(scratch.path().join("log")),
        thoroughness: THOROUGHNESS,
        only: None,
    };
    search.through(recording).unwrap().violation
}

/// The run without the events at these places.
fn without(recording: &Recording, left_out: impl Fn(usize, &Event) -> bool) -> Recording {
    let mut recording = recording.clone();
    let events = recording.events.into_iter().enumerate();
    recording.events = events
        .filter(|(index, event)| !left_out(*index, event))
        .map(|(_, event)| event)
        .collect();
    recording
}

fn is_segment_sync(event: &Event) -> bool {
    matches!(event, Event::SyncFile { name, .. } if !name.starts_with("next"))
}

fn is_appended(event: &Event) -> bool {
    matches!(event, Event::Say(Word::Appended { .. }))
}

#[test]
fn a_crash_of_any_run_or_recovery_keeps_every_promise() {
    let scratch = tempfile::tempdir().unwrap();
    let campaign = Campaign {
        recorder: recorder(&scratch),
        thoroughness: THOROUGHNESS,
        recoveries: 10,
    };
    let results = campaign
        .run(&|run| ["trim", "reopen"].contains(&run))
        .unwrap();
    assert!(results.violations.is_empty(), "{:?}", results.violations);
    let figures = results.figures;
    assert_eq!((figures.runs, figures.recoveries), (2, 20));
    assert!(figures.distinct_states > 200, "{figures:?}");
    assert!(figures.recovery_states > 250, "{figures:?}");
}

#[test]
fn a_failed_first_sync_of_the_directory_around_the_log_is_made_up_for() {
    let scratch = tempfile::tempdir().unwrap();
    // The first one is of the directory around that.
    let fault = Fault {
        call: "fsync",
        number: 2,
    };
    let recording = recorder(&scratch).script("reopen", Some(fault)).unwrap();
    let recording = recording.unwrap();
    let failed = |event: &Event| matches!(event, Event::SyncParent(sync) if !sync.succeeded);
    assert!(recording.events.iter().any(failed));
    assert_eq!(violation(&recording).map(|found| found.why), None);
}

#[test]
fn each_acknowledgement_needs_its_sync() {
    let recording = record("append");
    let mut left_out = 0;
    for acknowledged in (0..recording.events.len()).filter(|at| is_appended(&recording.events[*at]))
    {
        let before = &recording.events[..acknowledged];
        let sync = before.iter().rposition(is_segment_sync).unwrap();
        let found = violation(&without(&recording, |index, _| index == sync));
        assert!(found.is_some(), "the sync {sync} is missing");
        left_out += 1;
    }
    assert_eq!(left_out, 9);
}

#[test]
fn an_acknowledgement_before_its_sync_is_found() {
    let mut recording = record("append");
    let acknowledged = recording.events.iter().rposition(is_appended).unwrap();
    let before = &recording.events[..acknowledged];
    let sync = before.iter().rposition(is_segment_sync).unwrap();
    let word = recording.events.remove(acknowledged);
    recording.events.insert(sync, word);
    let found = violation(&recording).unwrap();
    assert_eq!(found.point, sync);
    assert!(found.why.contains("was acknowledged"), "{}", found.why);
}

#[test]
fn a_sync_that_failed_is_no_sync() {
    let mut recording = record("append");
    let acknowledged = recording.events.iter().rposition(is_appended).unwrap();
    let synced = recording.events[..acknowledged].iter_mut().rev();
    let syncs = synced.filter_map(|event| match event {
        Event::SyncFile { name, sync } if !name.starts_with("next") => Some(sync),
        _ => None,
    });
    syncs.take(1).for_each(|sync| sync.succeeded = false);
    assert!(violation(&recording).is_some());
}

#[test]
fn each_directory_sync_of_a_rotation_is_needed() {
    let recording = record("rotate");
    let renames: Vec<_> = (0..recording.events.len())
        .filter(|at| matches!(recording.events[*at], Event::Rename { .. }))
        .collect();
    assert!(renames.len() > 5);
    for rename in renames {
        let is_sync = |event: &Event| matches!(event, Event::SyncDirectory(_));
        let sync = rename + recording.events[rename..].iter().position(is_sync).unwrap();
        // Opening syncs the directory once more.
        let again = |at: usize| rename < 20 && at > sync && at < sync + 6;
        let found = violation(&without(&recording, |index, event| {
            index == sync || again(index) && is_sync(event)
        }));
        assert!(found.is_some(), "the sync {sync} is missing");
    }
}

#[test]
fn a_segment_in_service_before_its_header_is_durable_is_found() {
    let recording = record("rotate");
    let rename = |event: &Event| matches!(event, Event::Rename { .. });
    let last = recording.events.iter().rposition(rename).unwrap();
    let synced =
        |event: &Event| matches!(event, Event::SyncFile { name, .. } if name.starts_with("next"));
    let sync = recording.events[..last].iter().rposition(synced).unwrap();
    let found = violation(&without(&recording, |index, _| index == sync)).unwrap();
    assert!(found.why.contains("header"), "{}", found.why);
}

#[test]
fn an_unsynced_directory_around_the_log_is_found() {
    let recording = record("reopen");
    let found = violation(&without(&recording, |_, event| {
        matches!(event, Event::SyncParent(_))
    }));
    assert_eq!(found.unwrap().lost, ["the directory"]);
}

#[test]
fn deletions_that_become_durable_in_another_order_are_found() {
    let recording = record("trim");
    let unlinked = |at: usize| {
        let before = &recording.events[..at];
        let is_unlink =
            |event: &Event| matches!(event, Event::Unlink { name } if !name.starts_with("next"));
        let last = before.iter().rposition(is_unlink);
        last.is_some_and(|last| !before[last..].iter().any(is_appended))
    };
    let found = violation(&without(&recording, |index, event| {
        matches!(event, Event::SyncDirectory(_)) && unlinked(index)
    }));
    let why = found.unwrap().why;
    assert!(why.contains("are missing"), "{why}");
}

#[test]
fn what_is_kept_of_a_violation_shows_it_again() {
    let recording = record("append");
    let found = violation(&without(&recording, |_, event| is_segment_sync(event))).unwrap();
    let kept = tempfile::tempdir().unwrap();
    let report = found.keep(kept.path()).unwrap();
    let words: Vec<_> = report.split_whitespace().collect();
    let after = |flag: &str| {
        let at = words.iter().position(|word| *word == flag).unwrap();
        words[at + 1]
    };
    let mut again = recording.clone();
    again.events = read_events(Path::new(after("--replay"))).unwrap();
    again.from = after("--point").parse().unwrap();
    let again = violation(&again).unwrap();
    assert_eq!((again.point, again.why), (found.point, found.why));
    let state = format!("{:016x}", again.fingerprint.unwrap());
    assert_eq!(state, after("--state"));
    assert_eq!(again.files, found.files);
}
