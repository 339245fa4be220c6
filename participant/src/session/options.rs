//! What a session is started with, and what can be known to be wrong with it before anybody is dialled.

use std::fmt;

use unanimity_proto::v1;

use super::connection;

/// The longest name of a participant, in bytes.
const NAME_BYTES: usize = 48;

/// Who dials whom.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Where the coordinator listens: `http://HOST:PORT`, or `https://…` with [`SessionOptions::tls`].
    pub coordinator: String,
    /// The participant's name: `[a-z0-9_-]`, 1 to 48 bytes.
    pub participant: String,
    /// This process, for people; [`agent_label`] gives a good one.
    pub agent: String,
    /// The resource's identity; all agents of a participant must give the same.
    pub resource: String,
    /// How many branches can be open at once; at least 1.
    pub capacity: u32,
    /// The participant writes marker rows, so that a one-phase commit can be proved.
    pub one_phase: bool,
    /// The participant's `settle` tells for certain whether a saga's step took effect.
    pub settles_steps: bool,
    /// Which operations the participant takes.
    pub operations: Operations,
    /// Certificates, for an `https` address.
    pub tls: Option<Tls>,
}

/// Which operations a participant takes.
#[derive(Clone, Debug)]
pub struct Operations {
    /// Only those listed, SQL text too, or any.
    pub policy: v1::OperationPolicy,
    /// The named operations. The coordinator checks names and types against these before anything starts.
    pub listed: Vec<v1::OperationSignature>,
}

/// Certificates, all as PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Of the authority that signed the coordinator's certificate.
    pub authority: Vec<u8>,
    /// What this participant shows of itself, where the coordinator asks for it.
    pub identity: Option<TlsIdentity>,
}

/// A certificate with its key, both as PEM.
#[derive(Clone)]
pub struct TlsIdentity {
    /// The certificate, with those between it and the authority's.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsIdentity")
    }
}

/// Options with which no session can ever be opened. The texts name the option without its value, which may be a secret in the wrong place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOptions {
    /// The participant's name.
    #[error("name: a participant's takes 1 to {NAME_BYTES} of a-z, 0-9, _ and -")]
    Participant(String),
    /// A capacity of 0.
    #[error("a participant must be able to hold at least one branch open")]
    Capacity,
    /// The coordinator's address.
    #[error("coordinator: this can't be its address: {problem}")]
    Coordinator {
        /// The address.
        uri: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate or key.
    #[error("the certificates can't be used: {0}")]
    Tls(String),
}

/// Checks what can be checked before the resource is known.
pub(crate) fn check(
    coordinator: &str,
    participant: &str,
    tls: Option<&Tls>,
) -> Result<(), InvalidOptions> {
    check_participant(participant)?;
    connection::endpoint(coordinator, tls).map(drop)
}

/// Checks a participant's name.
pub(super) fn check_participant(name: &str) -> Result<(), InvalidOptions> {
    let fits = (1..=NAME_BYTES).contains(&name.len())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    fits.then_some(())
        .ok_or_else(|| InvalidOptions::Participant(name.into()))
}
