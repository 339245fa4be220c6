//! A hash of a transaction's content, so that a request id that comes again with something else is noticed.
//!
//! It is kept in the log, so its definition is for ever: FNV-1a over the branches in order, each text and list preceded by its length, and
//! a map's entries in the order of their keys (their order on the wire is anybody's).

use prost::Message as _;
use unanimity_engine::ParticipantName;
use unanimity_proto::v1::{self, operation::Statement};

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The fingerprint of these branches; never 0.
pub(crate) fn of<'a>(
    branches: impl ExactSizeIterator<Item = (&'a ParticipantName, &'a [v1::Operation])>,
) -> u64 {
    let mut hash = Fnv(OFFSET);
    hash.length(branches.len());
    for (participant, operations) in branches {
        hash.bytes(participant.as_str().as_bytes());
        hash.length(operations.len());
        for operation in operations {
            hash.operation(operation);
        }
    }
    hash.0.max(1)
}

struct Fnv(u64);

impl Fnv {
    fn raw(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
    }

    fn length(&mut self, length: usize) {
        self.raw(&(length as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.raw(bytes);
    }

    fn operation(&mut self, operation: &v1::Operation) {
        match &operation.statement {
            None => self.raw(&[0]),
            Some(Statement::Name(name)) => {
                self.raw(&[1]);
                self.bytes(name.as_bytes());
            }
            Some(Statement::Sql(text)) => {
                self.raw(&[2]);
                self.bytes(text.as_bytes());
            }
        }
        let mut parameters: Vec<_> = operation.parameters.iter().collect();
        parameters.sort_by_key(|(name, _)| *name);
        self.length(parameters.len());
        for (name, value) in parameters {
            self.bytes(name.as_bytes());
            self.bytes(&value.encode_to_vec());
        }
        self.length(operation.arguments.len());
        for value in &operation.arguments {
            self.bytes(&value.encode_to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debit(parameters: impl IntoIterator<Item = (String, i64)>) -> Vec<v1::Operation> {
        let value = |integer| v1::Value {
            kind: Some(v1::value::Kind::Integer(integer)),
        };
        vec![v1::Operation {
            statement: Some(Statement::Name("debit".into())),
            parameters: parameters
                .into_iter()
                .map(|(name, integer)| (name, value(integer)))
                .collect(),
            arguments: Vec::new(),
        }]
    }

    fn fingerprint(participant: &str, operations: &[v1::Operation]) -> u64 {
        let name = ParticipantName::parse(participant).expect("a name");
        of([(&name, operations)].into_iter())
    }

    #[test]
    fn the_order_of_parameters_does_not_count() {
        let names = || (0..50).map(|n| (format!("p{n}"), n));
        let one = fingerprint("a", &debit(names()));
        assert_eq!(
            one,
            fingerprint("a", &debit(names().collect::<Vec<_>>().into_iter().rev()))
        );
    }

    #[test]
    fn everything_else_counts() {
        let amount = |n| debit([("amount".to_owned(), n)]);
        let all = [
            fingerprint("a", &amount(1)),
            fingerprint("a", &amount(2)),
            fingerprint("b", &amount(1)),
            fingerprint("a", &debit([("id".to_owned(), 1)])),
            fingerprint("a", &[amount(1), amount(1)].concat()),
            fingerprint("a", &[]),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    /// A change of this value makes every request id that is in a log look reused.
    #[test]
    fn the_definition_is_for_ever() {
        assert_eq!(
            fingerprint("accounts", &debit([("amount".to_owned(), 5)])),
            PINNED
        );
    }

    const PINNED: u64 = 9_359_846_113_951_256_755;
}
