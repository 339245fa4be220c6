//! Segment sizes, and batches that fit or do not.

use unanimity_wal::{Options, Wal, WalError};

use crate::scratch::{LOG_ID, SALT_SEED, Scratch, change};

/// What a segment of 512 bytes takes in one record: without header, frame and length.
const LARGEST: usize = 512 - 64 - 24 - 4 - 8;

#[test]
fn segment_sizes_that_cannot_work_are_refused() {
    let scratch = Scratch::new(512);
    for segment_bytes in [0, 64, 511, 513, 1 << 31, u64::MAX] {
        let result = Wal::open(&scratch.path(), 1, 1, Options { segment_bytes });
        assert!(matches!(result, Err(WalError::InvalidOptions { .. })));
    }
    assert!(!scratch.path().exists());
}

#[test]
fn a_batch_as_large_as_a_segment_fits_and_a_larger_one_does_not() {
    let scratch = Scratch::new(512);
    let (mut wal, _) = scratch.open().unwrap();
    for (size, expected_segments) in [(LARGEST, 1), (LARGEST, 2)] {
        wal.append([vec![1; size]]).unwrap();
        assert_eq!(wal.segments(), expected_segments);
    }
    let error = wal.append([vec![1; LARGEST + 1]]).unwrap_err();
    assert!(matches!(error, WalError::TooLarge { limit_bytes: 448 }));
    assert_eq!(wal.append([b"still works"]).unwrap(), 3);
    drop(wal);
    assert_eq!(scratch.open().unwrap().1.records.len(), 3);
}

#[test]
fn a_larger_segment_takes_the_place_of_an_empty_one() {
    let scratch = Scratch::with(512, &[vec![vec![1; LARGEST]]]);
    for (segment_bytes, next_lsn) in [(1024, 2), (2048, 3)] {
        let options = Options { segment_bytes };
        let (mut wal, _) = Wal::open(&scratch.path(), LOG_ID, SALT_SEED, options).unwrap();
        let size = segment_bytes as usize - 512 + LARGEST;
        assert_eq!(wal.append([vec![2; size]]).unwrap(), next_lsn);
    }
    assert_eq!(scratch.dump().unwrap().1.len(), 3);
}

#[test]
fn an_empty_segment_that_was_replaced_still_joins_the_one_before() {
    let scratch = Scratch::with(512, &[vec![vec![1; LARGEST]], vec![b"lost".to_vec()]]);
    change(&scratch.last_segment(), |bytes| bytes[64..].fill(0));
    let options = Options {
        segment_bytes: 1024,
    };
    let (mut wal, _) = Wal::open(&scratch.path(), LOG_ID, SALT_SEED, options).unwrap();
    assert_eq!((wal.next_lsn(), wal.segments()), (2, 2));
    assert_eq!(wal.append([vec![2; 600]]).unwrap(), 2);
    assert_eq!(wal.segments(), 2);
    drop(wal);
    assert_eq!(scratch.open().unwrap().1.records[1], (2, vec![2; 600]));
}

#[test]
fn an_empty_log_takes_up_a_larger_segment_size() {
    let empty = Scratch::with(512, &[]);
    let options = Options {
        segment_bytes: 1024,
    };
    let (mut wal, _) = Wal::open(&empty.path(), LOG_ID, SALT_SEED, options).unwrap();
    assert_eq!(wal.append([vec![2; 600]]).unwrap(), 1);
    assert_eq!(wal.segments(), 1);
    drop(wal);
    assert_eq!(empty.open().unwrap().1.records, [(1, vec![2; 600])]);
}

#[test]
fn the_default_segment_has_64_mebibytes() {
    let scratch = Scratch::new(512);
    let (mut wal, _) = Wal::open(&scratch.path(), 1, 1, Options::default()).unwrap();
    wal.append([b"record"]).unwrap();
    let length = scratch.last_segment().metadata().unwrap().len();
    assert_eq!(length, 64 << 20);
    drop(wal);
    assert_eq!(scratch.open().unwrap().1.records.len(), 1);
}
