//! Bytes that nobody would send.

fn main() {}
