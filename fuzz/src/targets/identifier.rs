//! Ids of transactions and branches, on both sides of the wire and in the databases.

use unanimity_engine::{BranchKey, ParticipantName, TransactionId};
use unanimity_participant::{
    fuzzing::{age, gid, is_spliceable, is_transaction_id, xid},
    participant::BranchId,
};

use crate::Target;

pub(super) const IDENTIFIER: Target = Target {
    name: "identifier",
    promise: "an id has one spelling, all readers agree on what is ours, and nothing outside [0-9a-z.] gets into SQL",
    check,
    seeds,
};

fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(id) = text.parse::<TransactionId>() {
        assert_eq!(id.to_string(), text, "it has two spellings");
        assert!(text.len() <= 64, "it fits no XA gtrid");
        assert!(is_transaction_id(text), "participants refuse it");
        is_the_coordinators(id);
    }
    if let Some(name) = ParticipantName::parse(text) {
        assert_eq!(name.as_str(), text);
    }
    if let Some(branch) = gid(text) {
        assert_eq!(branch.to_string(), text, "the gid has two spellings");
        is_ours(&branch);
    }
    if let Some((transaction, number)) = text.split_once('/')
        && let Some(branch) = xid(transaction, number)
    {
        assert_eq!(branch.transaction, transaction);
        assert_eq!(branch.number.to_string(), number);
        is_ours(&branch);
    }
    for number in [0, 1, u32::MAX] {
        is_harmless(text, number);
    }
}

/// The participants read back what the coordinator writes.
fn is_the_coordinators(id: TransactionId) {
    let key = BranchKey {
        transaction: id,
        branch: 7,
    };
    let branch = gid(&key.to_string()).expect("a coordinator's branch is ours");
    assert_eq!(branch.transaction, id.to_string());
    assert_eq!(branch.number, 7);
    is_ours(&branch);
}

/// What a participant takes for ours, the coordinator can name.
fn is_ours(branch: &BranchId) {
    assert!(is_spliceable(branch), "it can't be finished: {branch}");
    let id = branch.transaction.parse::<TransactionId>();
    assert!(id.is_ok(), "the coordinator knows no such id: {branch}");
    age(branch);
}

fn is_harmless(text: &str, number: u32) {
    let branch = BranchId {
        transaction: text.into(),
        number,
    };
    if is_spliceable(&branch) {
        let harmless = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'.');
        assert!(text.bytes().all(harmless), "{text:?} gets into SQL");
        assert!((1..=64).contains(&text.len()) && number > 0);
        assert!(is_transaction_id(text));
    }
    age(&branch);
}

fn seeds() -> Vec<Vec<u8>> {
    let id = "u1.0000002a.3.0192f0c4a7b87c3d8e9f00112233aabb";
    [
        id.into(),
        format!("{id}.12"),
        format!("{id}/12"),
        "u1.00000000.ffffffffffffffff.ffffffffffffffffffffffffffffffff.4294967295".into(),
        "u1.00000000.0.00000000000000000000000000000000.1".into(),
        // Nearly ids: with another spelling, and with an epoch that no number holds.
        format!("{}.1", id.replace(".3.", ".03.")),
        format!("{}.1", id.replace(".3.", ".10000000000000000.")),
        "accounts".into(),
    ]
    .map(String::into_bytes)
    .into()
}
