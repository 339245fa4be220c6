//! What a database shows of a branch, and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::participant::{BranchId, Refusal};

use super::branches::lost;

/// A transaction's id is at most this long: the gtrid of an XA id holds no more.
pub(crate) const TRANSACTION_BYTES_MAX: usize = 64;

/// Checks an id before it is spliced into SQL: `PREPARE TRANSACTION` and `XA` take no parameters.
pub(crate) fn check(branch: &BranchId) -> Result<(), Refusal> {
    let transaction = &branch.transaction;
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.';
    if transaction.is_empty()
        || transaction.len() > TRANSACTION_BYTES_MAX
        || !transaction.bytes().all(legal)
        || branch.number == 0
    {
        return Err(lost(format!(
            "{:?}.{} is no branch id",
            branch.transaction, branch.number
        )));
    }
    Ok(())
}

/// Reads PostgreSQL's gid: `<transaction>.<number>`.
pub(crate) fn parse_gid(gid: &str) -> Option<BranchId> {
    let (transaction, number) = gid.rsplit_once('.')?;
    parse_parts(transaction, number)
}

/// Reads the two halves of an XA id. Only what we would have written ourselves is ours.
pub(crate) fn parse_parts(transaction: &str, number: &str) -> Option<BranchId> {
    let parts: Vec<&str> = transaction.split('.').collect();
    let [version, log, epoch, uuid] = parts[..] else {
        return None;
    };
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_number = u64::from_str_radix(epoch, 16).is_ok_and(|n| format!("{n:x}") == epoch);
    if version != "u1"
        || log.len() != 8
        || uuid.len() != 32
        || ![log, uuid].into_iter().all(hex)
        || !is_number
    {
        return None;
    }
    let parsed: u32 = number.parse().ok()?;
    if parsed == 0 || parsed.to_string() != number || transaction.len() > TRANSACTION_BYTES_MAX {
        return None;
    }
    Some(BranchId {
        transaction: transaction.into(),
        number: parsed,
    })
}

/// How long ago the transaction began, by the UUID v7 in its id; `None` where the id tells no time.
pub(crate) fn age(branch: &BranchId) -> Option<Duration> {
    let uuid = branch.transaction.rsplit('.').next()?;
    if uuid.len() != 32 || uuid.as_bytes()[12] != b'7' {
        return None;
    }
    let milliseconds = u64::from_str_radix(uuid.get(..12)?, 16).ok()?;
    let began = UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds))?;
    Some(SystemTime::now().duration_since(began).unwrap_or_default())
}

/// Whether the absence of a branch's marker row still proves that it didn't commit: markers older than the retention are purged.
pub(crate) fn marker_proves_absence(branch: &BranchId, retention: Duration) -> bool {
    age(branch).is_some_and(|age| is_still_marked(age, retention))
}

/// Whether what was begun that long ago has its marker still, if it ever had one. A quarter of the retention is left for clocks that differ
/// and for the time between the beginning and the marker.
pub(crate) fn is_still_marked(age: Duration, retention: Duration) -> bool {
    age < retention / 4 * 3
}

/// Lower-case hex, for `X'…'` and `decode('…', 'hex')`: text that can't break out of its quotes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use super::*;

    #[test]
    fn only_identifiers_that_we_would_write_are_ours() {
        let ours = "u1.0a1b2c3d.1f.0190a1b2c3d47abc8def0123456789ab";
        let parsed = parse_gid(&format!("{ours}.12")).unwrap();
        assert_eq!(
            parsed,
            BranchId {
                transaction: ours.into(),
                number: 12
            }
        );
        let foreign = [
            "x".into(),
            format!("{ours}.0"),
            format!("{ours}.012"),
            format!("{ours}.+1"),
            format!("{ours}.99999999999"),
            format!("{}.1", ours.to_uppercase()),
            "u2.0a1b2c3d.1f.0190a1b2c3d47abc8def0123456789ab.1".into(),
            "u1.0a1b2c3d.1f.0190a1b2.1".into(),
            format!("{}.1", ours.replace(".1f.", ".01f.")),
            format!("{}.1", ours.replace(".1f.", ".+1f.")),
            format!("{}.1", ours.replace(".1f.", ".10000000000000000.")),
        ];
        for gid in foreign {
            assert_eq!(parse_gid(&gid), None, "{gid}");
        }
    }

    #[test]
    fn an_id_that_could_break_out_of_its_quotes_is_refused() {
        for transaction in ["", "a'b", "a b", "A", &"a".repeat(65)] {
            assert!(
                check(&BranchId {
                    transaction: transaction.into(),
                    number: 1
                })
                .is_err(),
                "{transaction}"
            );
        }
    }

    #[test]
    fn an_old_or_timeless_transaction_is_not_proved_by_an_absent_marker() {
        let branch = |uuid: String| BranchId {
            transaction: format!("u1.00000000.1.{uuid}"),
            number: 1,
        };
        let now = uuid::Uuid::now_v7().simple().to_string();
        assert!(marker_proves_absence(&branch(now), Duration::from_secs(60)));
        assert!(!marker_proves_absence(
            &branch("0190a1b2c3d47abc8def0123456789ab".into()),
            Duration::from_secs(60)
        ));
        assert!(!marker_proves_absence(
            &branch("0".repeat(32)),
            Duration::from_secs(60)
        ));
    }
}
