//! No altered byte is taken for what was written.

use std::fs;

use unanimity_wal::WalError;

use crate::scratch::{Scratch, change, damage, numbered, used};

const SEGMENT_BYTES: usize = 512;

fn batches() -> Vec<Vec<Vec<u8>>> {
    let mut batches: Vec<_> = (1..=4_u8).map(|number| vec![vec![number; 150]]).collect();
    batches.push(vec![b"fifth".to_vec(), vec![], vec![0; 9]]);
    batches.push(vec![b"sixth and last".to_vec()]);
    batches
}

fn flips(byte: u8) -> Vec<u8> {
    let mut flips = vec![0x01, 0x80, 0xff, byte];
    flips.retain(|flip| *flip != 0);
    flips
}

#[test]
fn a_changed_byte_in_an_older_segment_is_refused() {
    let scratch = Scratch::with(SEGMENT_BYTES as u64, &batches());
    let segments = scratch.segments();
    assert_eq!(segments.len(), 3);
    for segment in &segments[..2] {
        let whole = fs::read(segment).unwrap();
        for position in 0..SEGMENT_BYTES {
            for flip in flips(whole[position]) {
                change(segment, |bytes| bytes[position] ^= flip);
                check_refused(&scratch, position);
                fs::write(segment, &whole).unwrap();
            }
        }
    }
    assert_eq!(scratch.dump().unwrap().1, numbered(&batches()));
}

#[test]
fn a_changed_byte_in_the_last_segment_is_refused_or_costs_no_earlier_batch() {
    let scratch = Scratch::with(SEGMENT_BYTES as u64, &batches());
    let segment = scratch.last_segment();
    let whole = fs::read(&segment).unwrap();
    let end = used(&whole);
    for position in 0..SEGMENT_BYTES {
        for flip in flips(whole[position]) {
            change(&segment, |bytes| bytes[position] ^= flip);
            let kept = if position >= end {
                batches().len()
            } else if position == end - 1 && whole[position] == flip {
                batches().len() - 1
            } else {
                check_refused(&scratch, position);
                fs::write(&segment, &whole).unwrap();
                continue;
            };
            let (_, recovery) = scratch.open().unwrap();
            assert_eq!(recovery.records, numbered(&batches()[..kept]));
            fs::remove_file(recovery.torn_tail.unwrap().saved_as.unwrap()).unwrap();
            fs::write(&segment, &whole).unwrap();
        }
    }
}

/// The same log id and salt, and sound frames, but not one history.
#[test]
fn a_batch_of_another_history_is_refused() {
    let log = |first: &[u8; 7]| Scratch::with(512, &[vec![first.to_vec()], vec![vec![2; 70]]]);
    let (scratch, other) = (log(b"history"), log(b"HISTORY"));
    let foreign = fs::read(other.last_segment()).unwrap();
    let first_frame_bytes = 24 + 16 + 8;
    change(&scratch.last_segment(), |bytes| {
        let second = 64 + first_frame_bytes;
        bytes[second..].copy_from_slice(&foreign[second..]);
    });
    let message = damage(scratch.open());
    assert!(
        message.contains("does not continue the one before"),
        "{message}"
    );
}

#[test]
fn a_batch_that_moved_is_refused() {
    let scratch = Scratch::with(512, &[vec![vec![1; 60]], vec![vec![2; 60]]]);
    change(&scratch.last_segment(), |bytes| {
        bytes.copy_within(160..256, 64)
    });
    let message = damage(scratch.open());
    assert!(message.contains("it has LSN 2"), "{message}");
}

/// Opening fails, and changes nothing.
fn check_refused(scratch: &Scratch, position: usize) {
    let before: Vec<_> = scratch
        .segments()
        .iter()
        .map(fs::read)
        .map(Result::unwrap)
        .collect();
    for error in [scratch.dump().unwrap_err(), scratch.open().unwrap_err()] {
        let expected = match error {
            WalError::NotALog { .. } => position < 8,
            WalError::Damaged { .. } => true,
            _ => false,
        };
        assert!(expected, "byte {position}: {error}");
    }
    let after: Vec<_> = scratch
        .segments()
        .iter()
        .map(fs::read)
        .map(Result::unwrap)
        .collect();
    assert_eq!(before, after);
}
