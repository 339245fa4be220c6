//! Every legal state of the log's files after a crash, reopened.

fn main() {}
