//! Many seeded lives of the real engine, with model databases, disk and network.

fn main() {}
