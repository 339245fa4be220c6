//! Real processes and databases under load, while every plug is pulled.

fn main() {}
