//! Recovery: the fold of the log's records, and the engine that starts from it.

use unanimity_engine::{Epoch, LogId, Moment, Record, Replay, Seq, Settings, Start};

use super::record;
use crate::Target;

pub(super) const REPLAY: Target = Target {
    name: "replay",
    promise: "no sequence of records, in any order, makes recovery panic, nor what it reports of itself",
    check,
    seeds,
};

/// Records stand one behind the other, each led by its length in two bytes.
fn check(mut bytes: &[u8]) {
    let mut replay = Replay::new();
    let mut next_seq = 1;
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (record, rest) = rest.split_at(length);
        if let Ok(record) = Record::decode(record) {
            replay.apply(record);
            next_seq += 1;
        }
        bytes = rest;
    }
    let start = Start {
        next_seq: Seq(next_seq),
        now: Moment(1_000),
        unix_ms: 1_700_000_000_000,
        seed: 7,
    };
    let mut engine = replay.start(LogId(0x2a), Settings::default(), start);
    while engine.poll_effect().is_some() {}
    engine.next_deadline();
}

fn seeds() -> Vec<Vec<u8>> {
    // The last number of all, which no next epoch follows.
    let last = Record::Epoch(Epoch(u64::MAX)).encode();
    let golden: Vec<_> = record::seeds()
        .iter()
        .map(|record| framed(record))
        .collect();
    vec![golden.concat(), framed(&last)]
}

fn framed(record: &[u8]) -> Vec<u8> {
    let length = u16::try_from(record.len()).expect("golden records are short");
    [&length.to_le_bytes()[..], record].concat()
}
