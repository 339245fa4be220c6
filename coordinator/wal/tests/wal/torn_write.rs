//! A crash in the middle of a write costs that batch at most, and never the log.

use std::fs;

use proptest::prelude::{ProptestConfig, any, prop_assert, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy};

use crate::scratch::{Scratch, change, damage, numbered, used};

const SEGMENT_BYTES: u64 = 4096;

fn acknowledged() -> Vec<Vec<Vec<u8>>> {
    vec![vec![vec![1; 100], vec![2; 50]], vec![vec![3; 7]]]
}

/// A log whose last batch has this record; and where that batch starts and ends.
fn log_with_last(record: Vec<u8>) -> (Scratch, usize, usize) {
    let scratch = Scratch::with(SEGMENT_BYTES, &acknowledged());
    let start = used(&fs::read(scratch.last_segment()).unwrap());
    let (mut wal, _) = scratch.open().unwrap();
    wal.append([record]).unwrap();
    drop(wal);
    let end = used(&fs::read(scratch.last_segment()).unwrap());
    (scratch, start, end)
}

#[test]
fn every_prefix_of_the_last_batch_is_cut_and_kept_aside() {
    let (scratch, start, end) = log_with_last(vec![9; 600]);
    let whole = fs::read(scratch.last_segment()).unwrap();
    for kept in start..end {
        let segment = scratch.last_segment();
        change(&segment, |bytes| {
            bytes.copy_from_slice(&whole);
            bytes[kept..].fill(0);
        });
        let (wal, recovery) = scratch.open().unwrap();
        assert_eq!(recovery.records, numbered(&acknowledged()), "kept {kept}");
        assert_eq!(wal.next_lsn(), 4);
        let Some(torn) = recovery.torn_tail else {
            assert_eq!(kept, start, "only nothing is not torn");
            continue;
        };
        assert_eq!((torn.lsn, torn.offset), (4, start as u64));
        let saved_as = torn.saved_as.unwrap();
        let saved = fs::read(&saved_as).unwrap();
        assert_eq!(saved, whole[start..start + torn.bytes as usize]);
        fs::remove_file(saved_as).unwrap();
        assert_eq!(used(&fs::read(&segment).unwrap()), start);
    }
}

#[test]
fn a_log_with_a_cut_batch_goes_on_and_keeps_every_copy() {
    let (scratch, start, end) = log_with_last(vec![9; 600]);
    for round in 0..3 {
        change(&scratch.last_segment(), |bytes| bytes[end - 1] = 0);
        let (mut wal, recovery) = scratch.open().unwrap();
        assert!(recovery.torn_tail.is_some(), "round {round}");
        assert_eq!(wal.append([vec![9; 600]]).unwrap(), 4);
        drop(wal);
        assert_eq!(used(&fs::read(scratch.last_segment()).unwrap()), end);
    }
    let copies = scratch.files();
    let copies = copies
        .iter()
        .filter(|path| path.to_string_lossy().contains(".wal.torn-4"));
    assert_eq!(copies.count(), 3);
    assert_eq!(scratch.open().unwrap().1.records.len(), 4);
    assert!(start < end);
}

#[test]
fn a_torn_batch_is_reported_and_left_alone_by_an_inspection() {
    let (scratch, start, end) = log_with_last(vec![9; 600]);
    change(&scratch.last_segment(), |bytes| bytes[end - 20..].fill(0));
    for _ in 0..2 {
        let (report, records) = scratch.dump().unwrap();
        assert_eq!(records, numbered(&acknowledged()));
        let torn = report.torn_tail.unwrap();
        assert_eq!((torn.offset, torn.saved_as), (start as u64, None));
    }
}

#[test]
fn a_lost_acknowledged_batch_is_damage() {
    let (scratch, start, _) = log_with_last(vec![9; 600]);
    let whole = fs::read(scratch.last_segment()).unwrap();
    for lost in (64..start).step_by(8) {
        change(&scratch.last_segment(), |bytes| {
            bytes.copy_from_slice(&whole);
            bytes[lost..start].fill(0);
        });
        damage(scratch.open());
    }
}

/// A record with runs of zeros long enough to fill sectors, and without.
fn record() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0), any::<u8>()];
    let run = (byte, 1..1200_usize).prop_map(|(byte, length)| vec![byte; length]);
    proptest::collection::vec(run, 1..4).prop_map(|runs| runs.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Power loss after kill -9: some sectors of some prefix. It also covers a cut that was
    /// interrupted, which makes more sectors zero.
    #[test]
    fn any_sectors_of_any_prefix_leave_the_acknowledged_batches(
        record in record().prop_filter("fits", |record| record.len() < 3500),
        kept in any::<proptest::sample::Index>(),
        lost in any::<u8>(),
    ) {
        let (scratch, start, end) = log_with_last(record.clone());
        let segment = scratch.last_segment();
        let whole = fs::read(&segment).unwrap();
        change(&segment, |bytes| {
            bytes[start + kept.index(end - start + 1)..].fill(0);
            for sector in (0..8).filter(|sector| lost & (1 << sector) != 0) {
                let from = (sector * 512).max(start);
                bytes[from..((sector + 1) * 512).max(from)].fill(0);
            }
        });
        let is_whole = fs::read(&segment).unwrap() == whole;
        let mut expected = acknowledged();
        if is_whole {
            expected.push(vec![record]);
        }
        let (_, recovery) = scratch.open().unwrap();
        prop_assert!(recovery.records == numbered(&expected));
        prop_assert!(!(is_whole && recovery.torn_tail.is_some()));
    }
}
