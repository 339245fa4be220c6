//! Rotation, trimming, and segment files that are not what they should be.

use std::fs;

use unanimity_wal::{WalError, verify};

use crate::scratch::{Scratch, change, damage};

/// Five segments: LSNs 1–2, 3–4, 5–6, 7–8, 9.
fn five_segments() -> Scratch {
    let batches: Vec<_> = (1..=9_u8).map(|number| vec![vec![number; 150]]).collect();
    let scratch = Scratch::with(512, &batches);
    assert_eq!(scratch.segments().len(), 5);
    scratch
}

#[test]
fn rotation_is_reported_once() {
    let scratch = Scratch::new(512);
    let (mut wal, _) = scratch.open().unwrap();
    let reported: Vec<_> = (0..5)
        .map(|_| {
            wal.append([[1; 150]]).unwrap();
            wal.take_rotated()
        })
        .collect();
    assert_eq!(reported, [false, false, true, false, true]);
    assert!(!wal.take_rotated());
    assert_eq!(wal.segments(), 3);
}

#[test]
fn the_next_segment_is_prepared_ahead() {
    let scratch = Scratch::new(512);
    let (mut wal, _) = scratch.open().unwrap();
    for _ in 0..4 {
        while !wal.can_rotate() {
            std::thread::yield_now();
        }
        assert!(scratch.path().join("next.wal.tmp").exists());
        wal.append([[1; 400]]).unwrap();
    }
}

#[test]
fn a_leftover_of_a_rotation_is_not_taken_for_a_segment() {
    let scratch = five_segments();
    let leftover = scratch.path().join("next.wal.tmp");
    fs::copy(scratch.last_segment(), leftover).unwrap();
    let (mut wal, recovery) = scratch.open().unwrap();
    assert_eq!(recovery.records.len(), 9);
    for _ in 0..4 {
        wal.append([[1; 150]]).unwrap();
    }
    drop(wal);
    assert_eq!(scratch.open().unwrap().1.records.len(), 13);
}

#[test]
fn trimming_deletes_segments_whose_records_are_all_older() {
    for (keep_from, expected) in [(0, 1), (1, 1), (2, 1), (3, 3), (6, 5), (9, 9), (1000, 9)] {
        let scratch = five_segments();
        let (mut wal, _) = scratch.open().unwrap();
        wal.trim(keep_from).unwrap();
        assert_eq!(wal.segments(), scratch.segments().len());
        assert_eq!(wal.append([b"next"]).unwrap(), 10);
        drop(wal);
        let (_, recovery) = scratch.open().unwrap();
        assert_eq!(recovery.first_lsn, expected, "trimmed to {keep_from}");
        assert_eq!(recovery.records[0].0, expected);
        assert_eq!(recovery.records.last().unwrap().0, 10);
    }
}

#[test]
fn a_missing_segment_is_damage_that_names_the_gap() {
    for missing in 1..4 {
        let scratch = five_segments();
        fs::remove_file(&scratch.segments()[missing]).unwrap();
        let (from, to) = (2 * missing + 1, 2 * missing + 2);
        let message = damage(scratch.open());
        let gap = format!("records {from} to {to} are missing; they started in {from:016x}.wal");
        assert!(message.contains(&gap), "{message}");
        damage(verify(&scratch.path()));
    }
}

#[test]
fn a_missing_first_segment_looks_like_a_trimmed_log() {
    let scratch = five_segments();
    fs::remove_file(&scratch.segments()[0]).unwrap();
    assert_eq!(scratch.open().unwrap().1.first_lsn, 3);
}

#[test]
fn segments_that_swapped_names_are_damage() {
    for (one, other) in [(0, 1), (1, 3), (3, 4)] {
        let scratch = five_segments();
        let segments = scratch.segments();
        let aside = scratch.path().join("aside");
        fs::rename(&segments[one], &aside).unwrap();
        fs::rename(&segments[other], &segments[one]).unwrap();
        fs::rename(&aside, &segments[other]).unwrap();
        let message = damage(scratch.open());
        assert!(message.contains("this is the segment of LSN"), "{message}");
    }
}

#[test]
fn a_segment_of_another_history_is_damage() {
    let batches: Vec<_> = (1..=9_u8)
        .map(|number| vec![vec![number ^ 1; 150]])
        .collect();
    for foreign in 1..5 {
        let scratch = five_segments();
        let other = Scratch::with(512, &batches);
        fs::copy(&other.segments()[foreign], &scratch.segments()[foreign]).unwrap();
        let message = damage(scratch.open());
        assert!(message.contains("does not continue"), "{message}");
    }
}

#[test]
fn a_segment_of_another_length_is_damage() {
    for length in [0, 1, 63, 64, 400, 511, 513, 1024] {
        for index in 0..5 {
            let scratch = five_segments();
            change(&scratch.segments()[index], |bytes| bytes.resize(length, 0));
            damage(scratch.open());
        }
    }
}

#[test]
fn a_segment_of_zeros_is_damage() {
    for index in 0..5 {
        let scratch = five_segments();
        change(&scratch.segments()[index], |bytes| bytes.fill(0));
        damage(scratch.open());
    }
}

#[test]
fn a_torn_batch_in_an_older_segment_is_damage() {
    let scratch = five_segments();
    change(&scratch.segments()[1], |bytes| bytes[400..].fill(0));
    let message = damage(scratch.open());
    assert!(message.contains("a later segment exists"), "{message}");
}

#[test]
fn foreign_files_are_not_taken_for_a_log() {
    for (name, content) in [
        (
            "0000000000000001.wal",
            "something else, and so long that a header could be in there, as it seems",
        ),
        ("notes.wal", ""),
        ("1.wal", ""),
        ("00000000000000FF.wal", ""),
    ] {
        let scratch = Scratch::new(512);
        fs::create_dir(scratch.path()).unwrap();
        fs::write(scratch.path().join(name), content).unwrap();
        let error = scratch.open().unwrap_err();
        assert!(matches!(error, WalError::NotALog { .. }), "{name}: {error}");
    }
}

#[test]
fn an_empty_directory_is_no_log_to_inspect() {
    let scratch = Scratch::new(512);
    fs::create_dir(scratch.path()).unwrap();
    assert!(matches!(
        verify(&scratch.path()),
        Err(WalError::NotALog { .. })
    ));
}

#[test]
fn another_format_version_is_refused_as_such() {
    let scratch = five_segments();
    change(&scratch.last_segment(), |bytes| {
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    });
    let error = scratch.open().unwrap_err();
    assert!(matches!(error, WalError::WrongVersion { found: 2, .. }));
}
