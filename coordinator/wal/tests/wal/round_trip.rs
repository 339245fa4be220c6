//! What is appended is there when the log is opened again.

use std::os::unix::fs::PermissionsExt;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use unanimity_wal::{Options, Wal, verify};

use crate::scratch::{LOG_ID, SALT_SEED, Scratch, numbered};

#[test]
fn a_missing_directory_becomes_a_new_log_for_the_owner_alone() {
    let scratch = Scratch::new(512);
    let (wal, recovery) = scratch.open().unwrap();
    assert!(recovery.created);
    assert_eq!(recovery.torn_tail, None);
    assert_eq!((recovery.log_id, recovery.first_lsn), (LOG_ID, 1));
    assert_eq!((wal.log_id(), wal.next_lsn()), (LOG_ID, 1));
    assert!(wal.free_space().unwrap() > 0);
    let mode = scratch.path().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn an_existing_log_keeps_its_identity_and_goes_on_counting() {
    let scratch = Scratch::new(512);
    let (mut wal, _) = scratch.open().unwrap();
    assert_eq!(wal.append([b"a", b"b", b"c"]).unwrap(), 3);
    drop(wal);
    let options = Options { segment_bytes: 512 };
    let (mut wal, recovery) = Wal::open(&scratch.path(), 99, 99, options).unwrap();
    assert!(!recovery.created);
    assert_eq!((recovery.log_id, wal.log_id()), (LOG_ID, LOG_ID));
    assert_eq!(recovery.records[2], (3, b"c".to_vec()));
    assert_eq!(wal.append([b"d"]).unwrap(), 4);
}

#[test]
fn an_empty_batch_changes_nothing() {
    let scratch = Scratch::new(512);
    let (mut wal, _) = scratch.open().unwrap();
    assert_eq!(wal.append([b""; 0]).unwrap(), 0);
    assert_eq!(wal.append([b""]).unwrap(), 1);
    assert_eq!(wal.append([b""; 0]).unwrap(), 1);
    assert_eq!(wal.next_lsn(), 2);
}

#[test]
fn a_callback_receives_the_records_instead_of_the_recovery() {
    let batches = [vec![b"one".to_vec(), b"two".to_vec()]];
    let scratch = Scratch::with(512, &batches);
    let mut records = Vec::new();
    let options = Options { segment_bytes: 512 };
    let keep = |lsn, record: &[u8]| records.push((lsn, record.to_vec()));
    let (_wal, recovery) =
        Wal::open_with(&scratch.path(), LOG_ID, SALT_SEED, options, keep).unwrap();
    assert!(recovery.records.is_empty());
    assert_eq!(records, numbered(&batches));
}

#[test]
fn a_log_in_use_can_be_inspected() {
    let scratch = Scratch::new(512);
    let (mut wal, _) = scratch.open().unwrap();
    assert_eq!(verify(&scratch.path()).unwrap().last_lsn, None);
    wal.append([b"x", b"y"]).unwrap();
    let report = verify(&scratch.path()).unwrap();
    assert_eq!((report.records, report.last_lsn), (2, Some(2)));
    assert_eq!((report.log_id, report.segments), (LOG_ID, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_batches_come_back_over_any_number_of_openings(
        lives in vec(vec(vec(vec(any::<u8>(), 0..120), 1..4), 0..8), 1..4)
    ) {
        let scratch = Scratch::new(1024);
        let mut written = Vec::new();
        for life in lives {
            let (mut wal, recovery) = scratch.open().unwrap();
            prop_assert_eq!(recovery.records, numbered(&written));
            prop_assert!(recovery.torn_tail.is_none());
            for batch in life {
                wal.append(&batch).unwrap();
                written.push(batch);
            }
        }
        let (report, records) = scratch.dump().unwrap();
        prop_assert_eq!(report.records, records.len() as u64);
        prop_assert_eq!(records, numbered(&written));
    }
}
