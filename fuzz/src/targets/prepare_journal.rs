//! The prepare journal of SQLite's agent.

use unanimity_participant::fuzzing::{prepare_journal, write_prepare_journal};

use crate::Target;

pub(super) const PREPARE_JOURNAL: Target = Target {
    name: "prepare_journal",
    promise: "a record that is read from any bytes is the one that these bytes spell; one with a wrong checksum is none",
    check,
    seeds,
};

/// Where the checksum stands, and what it is of.
const CHECKSUM: std::ops::Range<usize> = 8..12;
const LENGTH: std::ops::Range<usize> = 12..20;
const HEADER_BYTES: usize = 20;

fn check(bytes: &[u8]) {
    read(bytes);
    // Once more with a right checksum, without which little is read.
    let mut bytes = bytes.to_vec();
    if let Some(checksum) = checksum(&bytes) {
        bytes[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        read(&bytes);
    }
}

fn read(bytes: &[u8]) {
    let Some((branch, changeset)) = prepare_journal(bytes) else {
        return;
    };
    let stated = u32::from_le_bytes(bytes[CHECKSUM].try_into().expect("4 bytes"));
    assert_eq!(Some(stated), checksum(bytes), "its checksum is wrong");
    let written = write_prepare_journal(branch, changeset);
    // What stands behind a record is an older one's rest.
    assert_eq!(&bytes[..written.len()], written, "it is written otherwise");
}

/// Of what the length says is there.
fn checksum(bytes: &[u8]) -> Option<u32> {
    let length = u64::from_le_bytes(bytes.get(LENGTH)?.try_into().ok()?);
    let end = HEADER_BYTES.checked_add(length.try_into().ok()?)?;
    Some(crc32c::crc32c(bytes.get(LENGTH.start..end)?))
}

fn seeds() -> Vec<Vec<u8>> {
    let branch = unanimity_participant::participant::BranchId {
        transaction: "u1.0000002a.3.0192f0c4a7b87c3d8e9f00112233aabb".into(),
        number: 3,
    };
    vec![
        write_prepare_journal(branch.clone(), b"T\x02\x01\x00account\x00".to_vec()),
        write_prepare_journal(branch, Vec::new()),
    ]
}
