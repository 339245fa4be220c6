//! What an operation does to a model database: money moves between its accounts.
//!
//! ```text
//! byte 0      flags: 1 = may not overdraw, 2 = is refused
//! then, for each change: account, one byte; amount, eight bytes, little-endian
//! ```

use unanimity_engine::Payload;

/// One operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// It is refused where an account would fall below zero.
    pub(crate) checked: bool,
    /// The business says no, whatever the balances.
    pub(crate) refused: bool,
    /// Account and amount. None: it only reads.
    pub(crate) changes: Vec<(u8, i64)>,
}

impl Work {
    pub(crate) fn reads() -> Self {
        Work::default()
    }

    /// May not overdraw.
    pub(crate) fn moves(account: u8, amount: i64) -> Self {
        Work {
            checked: true,
            refused: false,
            changes: vec![(account, amount)],
        }
    }

    /// What undoes it; never refused.
    pub(crate) fn inverse(&self) -> Self {
        Work {
            checked: false,
            refused: false,
            changes: self
                .changes
                .iter()
                .map(|(account, by)| (*account, -by))
                .collect(),
        }
    }

    /// By how much it changes what the bank holds in all.
    pub(crate) fn sum(&self) -> i64 {
        self.changes.iter().map(|(_, amount)| amount).sum()
    }

    pub(crate) fn join(&mut self, other: Work) {
        self.checked |= other.checked;
        self.refused |= other.refused;
        self.changes.extend(other.changes);
    }

    pub(crate) fn encode(&self) -> Payload {
        let mut bytes = vec![u8::from(self.checked) | u8::from(self.refused) << 1];
        for (account, amount) in &self.changes {
            bytes.push(*account);
            bytes.extend(amount.to_le_bytes());
        }
        bytes.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let (flags, changes) = bytes.split_first().expect("the simulator wrote it");
        let change = |chunk: &[u8]| {
            let amount = chunk[1..].try_into().expect("nine bytes each");
            (chunk[0], i64::from_le_bytes(amount))
        };
        Work {
            checked: flags & 1 != 0,
            refused: flags & 2 != 0,
            changes: changes.chunks_exact(9).map(change).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_reads_back_as_it_was_written() {
        let mut work = Work::moves(3, -17);
        work.join(Work::moves(0, i64::MAX));
        work.refused = true;
        assert_eq!(Work::decode(&work.encode()), work);
        assert_eq!(Work::decode(&Work::reads().encode()), Work::reads());
    }
}
