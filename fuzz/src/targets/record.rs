//! The engine's records.

use unanimity_engine::Record;

use crate::Target;

pub(super) const RECORD: Target = Target {
    name: "record",
    promise: "a record that is read from any bytes reads the same when it is written again, and then has one spelling",
    check,
    seeds,
};

fn check(bytes: &[u8]) {
    let Ok(record) = Record::decode(bytes) else {
        return;
    };
    let canonical = record.encode();
    assert_eq!(
        Record::decode(&canonical).as_ref(),
        Ok(&record),
        "it reads otherwise when it is written again"
    );
    assert_eq!(record.encode(), canonical, "it has two spellings");
}

/// One of each kind, as the engine's own tests pin them.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let golden = [
        include_str!("../../../coordinator/engine/tests/golden/records.txt"),
        include_str!("../../../coordinator/engine/tests/golden/saga_records.txt"),
    ];
    let lines = golden.iter().flat_map(|text| text.lines());
    lines.map(unhex).collect()
}

fn unhex(line: &str) -> Vec<u8> {
    let digits = line.trim().as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| std::str::from_utf8(pair).map(|text| u8::from_str_radix(text, 16));
    digits
        .map(|pair| {
            byte(pair)
                .expect("hex is ASCII")
                .expect("golden files hold hex")
        })
        .collect()
}
