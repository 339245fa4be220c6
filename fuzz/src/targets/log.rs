//! The write-ahead log's files.

use std::{fs, path::Path};

use unanimity_wal::{Options, Wal, WalError, dump};

use crate::{
    Target,
    log_format::{SECTOR_BYTES, Segment},
    scratch,
};

pub(super) const SEGMENT: Target = Target {
    name: "segment",
    promise: "no bytes of a segment file make reading or opening it panic, and what opens shows the same a second time",
    check: any_segment,
    seeds: segment_seeds,
};

pub(super) const DAMAGED_LOG: Target = Target {
    name: "damaged_log",
    promise: "a log with altered bytes shows no record that was not written, and never opens without a batch that was acknowledged",
    check: damaged_log,
    seeds: log_seeds,
};

pub(super) const CRASHED_LOG: Target = Target {
    name: "crashed_log",
    promise: "a log whose last batch lost any sectors or its end opens with all before it, takes new records, and opens again",
    check: crashed_log,
    seeds: log_seeds,
};

const LENGTH: usize = 8 * SECTOR_BYTES;

/// What befalls a log.
#[derive(Debug)]
struct Mishap {
    segment: usize,
    /// Where bytes are changed; no more than 4 that stand together, so that no checksum can be right by accident.
    at: usize,
    flip: [u8; 4],
    /// Sectors of the last batch that never reached the disk.
    lost_sectors: u16,
    /// So many bytes of it were written.
    written: usize,
}

/// Reads 12 bytes of mishap, then batches: a byte whose upper bit begins a segment and whose others count records, and for each record its
/// length, in steps of 3 bytes, and what fills it.
fn life_of(bytes: &[u8]) -> Option<(Vec<Segment>, Mishap)> {
    let (mishap, mut rest) = bytes.split_first_chunk::<12>()?;
    let pair = |at| u16::from_le_bytes([mishap[at], mishap[at + 1]]);
    let found = Mishap {
        segment: mishap[0].into(),
        at: pair(1).into(),
        flip: [mishap[3], mishap[4], mishap[5], mishap[6]],
        lost_sectors: pair(7),
        written: pair(9).into(),
    };
    let mut segments = vec![Segment::first(0x2a, mishap[11].into(), LENGTH)];
    while let Some((control, records)) = rest.split_first() {
        let last = segments.last()?;
        if control & 0x80 != 0 && !last.frames.is_empty() && segments.len() < 4 {
            segments.push(last.next());
        }
        let count = usize::from(control & 3) + 1;
        let batch: Vec<_> = records.chunks_exact(2).take(count).map(record).collect();
        rest = &records[batch.len() * 2..];
        if batch.is_empty() {
            break;
        }
        segments.last_mut()?.append(batch);
    }
    Some((segments, found))
}

fn record(shape: &[u8]) -> Vec<u8> {
    vec![shape[1]; usize::from(shape[0]) * 3]
}

fn store(directory: &Path, segments: &[Segment]) {
    for segment in segments {
        segment
            .store(directory)
            .expect("scratch files can be written");
    }
}

fn written(segments: &[Segment]) -> Vec<Vec<u8>> {
    let records = segments.iter().flat_map(Segment::records);
    records.cloned().collect()
}

fn open(directory: &Path) -> Result<(Wal, Vec<Vec<u8>>), WalError> {
    let options = Options {
        segment_bytes: LENGTH as u64,
    };
    let (wal, recovery) = Wal::open(directory, 1, 7, options)?;
    let records = recovery.records.into_iter();
    Ok((wal, records.map(|(_, record)| record).collect()))
}

// ---- any bytes

/// The first byte says whether the header's checksum is mended, without which nothing behind it is read.
fn any_segment(bytes: &[u8]) {
    let Some((mend, bytes)) = bytes.split_first() else {
        return;
    };
    let mut segment = Segment::first(0x2a, 7, LENGTH.max(bytes.len()));
    segment.bytes.truncate(bytes.len());
    segment.bytes.copy_from_slice(bytes);
    if mend & 1 != 0 && bytes.len() >= 64 {
        segment.seal_header();
    }
    let directory = scratch::directory();
    segment.first_lsn = match (mend & 2 != 0).then(|| segment.bytes.get(24..32)).flatten() {
        Some(lsn) => u64::from_le_bytes(lsn.try_into().expect("8 bytes")),
        None => 1,
    };
    store(directory.path(), std::slice::from_ref(&segment));
    let mut shown = Vec::new();
    let read = dump(directory.path(), |lsn, _, _, record| {
        shown.push((lsn, record.to_vec()));
    });
    let Ok(report) = read else { return };
    assert_eq!(report.records, shown.len() as u64);
    let records: Vec<_> = shown.into_iter().map(|(_, record)| record).collect();
    for _ in 0..2 {
        let opened = open(directory.path()).map(|(_, records)| records);
        assert_eq!(opened.expect("what can be read opens"), records);
    }
}

fn segment_seeds() -> Vec<Vec<u8>> {
    let mut segment = Segment::first(0x2a, 7, 2 * SECTOR_BYTES);
    let empty = [&[1], &segment.bytes[..]].concat();
    segment.append(vec![b"one".to_vec(), Vec::new()]);
    segment.append(vec![vec![7; 100]]);
    let whole = [&[1], &segment.bytes[..]].concat();
    let torn = [&[1], &segment.bytes[..segment.end() - 40], &[0; 456]].concat();
    // Its first record has the last number of all.
    let mut last = Segment::first_at(u64::MAX, 7, 2 * SECTOR_BYTES);
    last.append(vec![vec![7; 9]]);
    vec![empty, whole, torn, [&[2], &last.bytes[..]].concat()]
}

// ---- damage

fn damaged_log(bytes: &[u8]) {
    let Some((mut segments, mishap)) = life_of(bytes) else {
        return;
    };
    let written = written(&segments);
    let last_batch = segments.last().and_then(|last| last.frames.last());
    let acknowledged = written.len() - last_batch.map_or(0, |(_, records)| records.len());
    let evident = alter(&mut segments, &mishap);
    let directory = scratch::directory();
    store(directory.path(), &segments);
    let mut shown = Vec::new();
    let read = dump(directory.path(), |lsn, _, _, record| {
        shown.push((lsn, record.to_vec()));
    });
    for ((lsn, shown), (expected, written)) in shown.iter().zip((1..).zip(&written)) {
        assert_eq!((*lsn, shown), (expected, written), "nobody wrote that");
    }
    assert!(
        shown.len() <= written.len(),
        "more is shown than was written"
    );
    if read.is_ok() {
        assert!(
            !evident,
            "the last batch was altered, and is taken for torn"
        );
        assert!(shown.len() >= acknowledged, "an acknowledged batch is lost");
        let (_, records) = open(directory.path()).expect("what can be read opens");
        assert_eq!(records, written[..shown.len()]);
    } else {
        let before = files(directory.path());
        assert!(open(directory.path()).is_err(), "it opens all the same");
        assert_eq!(before, files(directory.path()), "the evidence is altered");
    }
}

/// Changes bytes; whether that hits the last batch so that it can't pass for one which a crash cut short.
fn alter(segments: &mut [Segment], mishap: &Mishap) -> bool {
    let at = mishap.segment % segments.len();
    let is_last = at + 1 == segments.len();
    let segment = &mut segments[at];
    let whole = segment.bytes.clone();
    let start = mishap.at % whole.len();
    for (byte, flip) in segment.bytes[start..].iter_mut().zip(mishap.flip) {
        *byte ^= flip;
    }
    let Some((place, _)) = segment.frames.last().filter(|_| is_last) else {
        return false;
    };
    let (before, after) = (&whole[place.clone()], &segment.bytes[place.clone()]);
    // What stands behind it would be its end.
    let rest_is_clean = segment.bytes[place.end..].iter().all(|byte| *byte == 0);
    before != after
        && rest_is_clean
        && after.ends_with(&before[before.len() - 1..])
        && !misses_a_sector(segment, place)
}

/// A sector of the batch holds only zeros, as if it had never been written.
fn misses_a_sector(segment: &Segment, place: &std::ops::Range<usize>) -> bool {
    (0..LENGTH / SECTOR_BYTES).any(|at| {
        let start = (at * SECTOR_BYTES).max(place.start);
        let end = ((at + 1) * SECTOR_BYTES).min(place.end);
        start < end && segment.bytes[start..end].iter().all(|byte| *byte == 0)
    })
}

/// All segments.
fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(directory).expect("the scratch directory is there");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.extension().is_some_and(|end| end == "wal"))
        .map(|path| {
            let bytes = fs::read(&path).expect("it can be read");
            (path.to_string_lossy().into_owned(), bytes)
        })
        .collect();
    files.sort();
    files
}

// ---- crashes

fn crashed_log(bytes: &[u8]) {
    let Some((mut segments, mishap)) = life_of(bytes) else {
        return;
    };
    let mut expected = written(&segments);
    if let Some(last) = segments.last_mut()
        && let Some((place, records)) = last.frames.last().cloned()
    {
        let whole = last.bytes.clone();
        crash(last, place, &mishap);
        if last.bytes != whole {
            expected.truncate(expected.len() - records.len());
        }
    }
    let directory = scratch::directory();
    store(directory.path(), &segments);
    for at in 0_u8..3 {
        let (mut wal, records) = open(directory.path()).expect("it boots after any crash");
        assert_eq!(records, expected);
        assert_eq!(wal.log_id(), 0x2a);
        let added = vec![at; 300];
        wal.append([&added]).expect("it takes records again");
        expected.push(added);
    }
}

/// What a crash in the middle of the batch at `place` may leave of it: some sectors of a prefix.
fn crash(segment: &mut Segment, place: std::ops::Range<usize>, mishap: &Mishap) {
    // Nought is all of it.
    if mishap.written > 0 {
        let written = place.start + mishap.written % (place.len() + 1);
        segment.bytes[written..place.end].fill(0);
    }
    for at in 0..16 {
        let sector = at * SECTOR_BYTES..(at + 1) * SECTOR_BYTES;
        let lost = sector.start.max(place.start)..sector.end.min(place.end);
        if mishap.lost_sectors & (1 << at) != 0 && lost.start < lost.end {
            segment.bytes[lost].fill(0);
        }
    }
}

/// Two segments with two batches each, and a mishap in each of some places.
fn log_seeds() -> Vec<Vec<u8>> {
    let batches = [
        [0x01, 9, 7, 0, 0],
        [0x01, 250, 1, 3, 2],
        [0x81, 5, 5, 9, 4],
        [0x01, 200, 0xff, 150, 6],
    ];
    let seed = |(segment, at, lost, written): (u8, u16, u8, u16)| {
        let [low, high] = at.to_le_bytes();
        let [written, more] = written.to_le_bytes();
        let mishap = [segment, low, high, 1, 0, 0, 0, lost, 0, written, more, 9];
        [&mishap[..], &batches.concat()].concat()
    };
    let places = [
        (0, 10, 0, 0),
        (0, 40, 1, 5),
        (0, 64, 2, 600),
        (0, 90, 3, 1000),
        (0, 300, 4, 20),
        (1, 50, 5, 0),
        (1, 70, 6, 1),
        (1, 85, 7, 2),
        (1, 400, 0, 900),
        (1, 4000, 2, 0),
    ];
    places.map(seed).into()
}
