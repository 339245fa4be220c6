//! What the examples share: processes to start and kill, and work that goes on meanwhile.
//!
//! Nothing here is for applications to copy, and nothing here knows what an example's work is: [`processes`] starts the coordinator, the agents
//! and the services, [`traffic`] says how far the clients may go and counts what they did, [`chaos`] pulls plugs while they are at it, and the
//! rest is for the eye.

pub mod address;
pub mod chaos;
pub mod processes;
pub mod progress;
pub mod role;
pub mod table;
pub mod traffic;
