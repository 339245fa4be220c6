//! Instruments that hurt: what stands between processes, under their files, and in their streams.
//!
//! - [`proxy`]: a network that cuts, delays, resets and loses answers.
//! - [`disk`]: a disk that fails, hangs, lags, or is full.
//! - [`relay`]: a session between agent and coordinator whose messages come twice, late, or out of turn.
//!
//! Each counts what it did to whom. A fault that hit nothing has proved nothing, and is to be called skipped.

pub mod disk;
pub mod proxy;
pub mod relay;
