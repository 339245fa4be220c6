//! Ports to listen on.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::Mutex,
};

/// A free port of the loopback address, which this process gives out once only.
///
/// It lies below those that the system gives to outgoing connections: one of these could take it while a server is down for a restart. Even a
/// client that dials it in vain could, by a connection to itself.
pub fn free() -> u16 {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut given = GIVEN.lock().expect("nothing panics with the lock");
    let mut candidates = (0..1_000).map(|_| rand::random_range(10_000..32_000));
    let port = candidates
        .find(|port| {
            !given.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
        })
        .expect("a port is free");
    given.push(port);
    port
}
