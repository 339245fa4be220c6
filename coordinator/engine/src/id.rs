//! Names of things. Parsed here and nowhere else, so that what is inside the engine is known to be well formed.

use std::{fmt, str::FromStr, sync::Arc};

/// The identity of one log, drawn when it was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(pub u32);

/// Eight hex digits.
impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for LogId {
    type Err = MalformedId;

    fn from_str(text: &str) -> Result<Self, MalformedId> {
        match text.len() {
            8 => Ok(LogId(hex(text)? as u32)),
            _ => Err(MalformedId),
        }
    }
}

/// The coordinator's incarnation: durable, raised at every start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// A record's number in the log; the first ever is 1. The same as the log's LSN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seq(pub u64);

/// Milliseconds on a clock that only goes forward; its origin means nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// This moment and some milliseconds more.
    pub fn after_ms(self, ms: u64) -> Self {
        Moment(self.0.saturating_add(ms))
    }
}

/// The session of one participant process; drawn by the driver, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// A call that waits for an answer; drawn by the driver, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// `u1.<log id, 8 hex>.<epoch, hex>.<uuid v7, 32 hex>`: at most 62 bytes, so that it fits the 64 of an XA gtrid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId {
    /// Whose.
    pub log: LogId,
    /// Minted by which incarnation.
    pub epoch: Epoch,
    /// A UUID v7: milliseconds since 1970 in the upper 48 bits, then random bits, so that nobody can guess it.
    pub unique: u128,
}

impl TransactionId {
    /// When it was minted, in milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        (self.unique >> 80) as u64
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "u1.{}.{:x}.{:032x}", self.log, self.epoch.0, self.unique)
    }
}

/// The text is not `u1.<log id>.<epoch>.<uuid>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a transaction id looks like u1.<8 hex digits>.<hex digits>.<32 hex digits>, in lower case"
)]
pub struct MalformedId;

impl FromStr for TransactionId {
    type Err = MalformedId;

    fn from_str(text: &str) -> Result<Self, MalformedId> {
        let mut parts = text.split('.');
        let (Some("u1"), Some(log), Some(epoch), Some(unique), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(MalformedId);
        };
        if epoch.is_empty() || unique.len() != 32 || epoch.starts_with('0') && epoch != "0" {
            return Err(MalformedId);
        }
        Ok(TransactionId {
            log: log.parse()?,
            epoch: Epoch(u64::try_from(hex(epoch)?).map_err(|_| MalformedId)?),
            unique: hex(unique)?,
        })
    }
}

/// Lower-case digits only: an id has one spelling.
fn hex(text: &str) -> Result<u128, MalformedId> {
    if !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(MalformedId);
    }
    u128::from_str_radix(text, 16).map_err(|_| MalformedId)
}

/// A branch of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BranchKey {
    /// The transaction.
    pub transaction: TransactionId,
    /// From 1.
    pub branch: u32,
}

impl fmt::Display for BranchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.transaction, self.branch)
    }
}

/// A participant's name: 1 to 48 of `[a-z0-9_-]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParticipantName(Arc<str>);

impl ParticipantName {
    /// Takes a well-formed name.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=48).contains(&text.len());
        let plain = text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        (fits && plain).then(|| ParticipantName(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ParticipantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The client's idempotency key: 1 to 64 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Takes a key of a fitting length, without control characters.
    pub fn parse(text: &str) -> Option<Self> {
        ((1..=64).contains(&text.len()) && !text.chars().any(char::is_control))
            .then(|| RequestId(text.into()))
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The key of a lock: 1 to 128 bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockKey(Arc<str>);

impl LockKey {
    /// Takes a key of a fitting length, without control characters.
    pub fn parse(text: &str) -> Option<Self> {
        ((1..=128).contains(&text.len()) && !text.chars().any(char::is_control))
            .then(|| LockKey(text.into()))
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a saga's step: 1 to 48 of `[a-z0-9_-]`; not `transaction`, which references keep for themselves.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepName(Arc<str>);

impl StepName {
    /// Takes a name that fits.
    pub fn parse(text: &str) -> Option<Self> {
        (ParticipantName::parse(text).is_some() && text != "transaction")
            .then(|| StepName(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_it_was_written_and_fits_an_xa_gtrid() {
        let id = TransactionId {
            log: LogId(0xab),
            epoch: Epoch(u64::MAX),
            unique: u128::MAX,
        };
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().len() <= 64);
    }

    #[test]
    fn an_id_has_one_spelling() {
        for wrong in [
            "",
            "u1",
            "u2.000000ab.1.00000000000000000000000000000001",
            "u1.000000AB.1.00000000000000000000000000000001",
            "u1.ab.1.00000000000000000000000000000001",
            "u1.000000ab.01.00000000000000000000000000000001",
            "u1.000000ab..00000000000000000000000000000001",
            "u1.000000ab.1.1",
            "u1.000000ab.1.00000000000000000000000000000001.1",
            "u1.000000ab.11111111111111111.00000000000000000000000000000001",
            "u1.+00000ab.1.00000000000000000000000000000001",
        ] {
            assert_eq!(wrong.parse::<TransactionId>(), Err(MalformedId), "{wrong}");
        }
    }
}
