//! The bytes of the format are fixed: a log of this version is read by every later one.

use std::fmt::Write;
use std::fs;

use unanimity_wal::verify;

use crate::scratch::{LOG_ID, Scratch, numbered, used};

const GOLDEN: &str = include_str!("../golden/segment-v1.hex");
const SEGMENT_BYTES: u64 = 512;

fn batches() -> Vec<Vec<Vec<u8>>> {
    vec![
        vec![b"first".to_vec()],
        vec![b"second batch".to_vec(), vec![], (0..16).collect()],
    ]
}

#[test]
fn the_same_records_give_the_golden_bytes() {
    let scratch = Scratch::with(SEGMENT_BYTES, &batches());
    let bytes = fs::read(scratch.last_segment()).unwrap();
    let written = to_hex(&bytes[..used(&bytes)]);
    assert_eq!(written, GOLDEN, "written:\n{written}");
}

#[test]
fn the_golden_bytes_are_a_log() {
    let scratch = Scratch::new(SEGMENT_BYTES);
    let mut bytes = from_hex(GOLDEN);
    bytes.resize(SEGMENT_BYTES as usize, 0);
    fs::create_dir(scratch.path()).unwrap();
    fs::write(scratch.path().join("0000000000000001.wal"), bytes).unwrap();
    let report = verify(&scratch.path()).unwrap();
    assert_eq!((report.log_id, report.records), (LOG_ID, 4));
    assert_eq!(scratch.open().unwrap().1.records, numbered(&batches()));
}

/// Lines of 16 bytes.
fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(16) {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    text
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(char::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap())
        .collect()
}
