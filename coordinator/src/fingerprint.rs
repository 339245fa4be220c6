//! A hash of a transaction's content, so that a request id that comes again with something else is noticed.
//!
//! It is kept in the log, so its definition is for ever: FNV-1a over the branches in order, each text and list preceded by its length, and
//! a map's entries in the order of their keys (their order on the wire is anybody's). Of a saga it is over the word `saga`, the steps as they
//! were given, with what was left out left out (a default may change with a release), and the keys of the locks. Timeouts don't count.

use prost::Message as _;
use unanimity_proto::v1::{self, operation::Statement, step_request::Work};

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The fingerprint of these branches; never 0.
pub(crate) fn of<'a>(
    branches: impl ExactSizeIterator<Item = (&'a str, &'a [v1::Operation])>,
) -> u64 {
    let mut hash = Fnv(OFFSET);
    hash.branches(branches);
    hash.finish()
}

/// The fingerprint of a saga; never 0.
pub(crate) fn of_saga(steps: &[v1::StepRequest], locks: &[String]) -> u64 {
    let mut hash = Fnv(OFFSET);
    hash.bytes(b"saga");
    hash.length(steps.len());
    for step in steps {
        hash.step(step);
    }
    hash.texts(locks);
    hash.finish()
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

    fn texts(&mut self, texts: &[String]) {
        self.length(texts.len());
        for text in texts {
            self.bytes(text.as_bytes());
        }
    }

    fn finish(&self) -> u64 {
        self.0.max(1)
    }

    fn branches<'a>(
        &mut self,
        branches: impl ExactSizeIterator<Item = (&'a str, &'a [v1::Operation])>,
    ) {
        self.length(branches.len());
        for (participant, operations) in branches {
            self.bytes(participant.as_bytes());
            self.length(operations.len());
            for operation in operations {
                self.operation(operation);
            }
        }
    }

    fn step(&mut self, step: &v1::StepRequest) {
        self.bytes(step.name.as_bytes());
        // The unset kind is another name of the first.
        self.raw(&[match step.kind() {
            v1::StepKind::Unspecified | v1::StepKind::Compensatable => 1,
            v1::StepKind::Pivot => 2,
            v1::StepKind::Retriable => 3,
        }]);
        self.texts(&step.after);
        match &step.work {
            None => self.raw(&[0]),
            Some(Work::Action(action)) => {
                self.raw(&[1]);
                self.bytes(action.participant.as_bytes());
                self.optional(action.operation.as_ref());
                self.optional(action.compensation.as_ref());
            }
            Some(Work::Group(group)) => {
                self.raw(&[2]);
                let branches = group.branches.iter();
                self.branches(branches.map(|b| (b.participant.as_str(), &b.operations[..])));
            }
        }
        // Numbers and spans only: prost writes them in the order of their tags.
        self.bytes(&step.retry.unwrap_or_default().encode_to_vec());
    }

    fn optional(&mut self, operation: Option<&v1::Operation>) {
        self.raw(&[u8::from(operation.is_some())]);
        if let Some(operation) = operation {
            self.operation(operation);
        }
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
        of([(participant, operations)].into_iter())
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

    fn action(change: impl Fn(&mut v1::StepRequest, &mut v1::Action)) -> v1::StepRequest {
        let mut step = v1::StepRequest {
            name: "order".into(),
            ..v1::StepRequest::default()
        };
        let mut action = v1::Action {
            participant: "shop".into(),
            operation: debit([("amount".to_owned(), 5)]).pop(),
            compensation: None,
        };
        change(&mut step, &mut action);
        step.work.get_or_insert(Work::Action(action));
        step
    }

    #[test]
    fn all_of_a_saga_counts() {
        let one = |change: &dyn Fn(&mut v1::StepRequest, &mut v1::Action)| {
            of_saga(&[action(change)], &[])
        };
        let group = v1::AtomicGroup {
            branches: vec![v1::BranchRequest {
                participant: "shop".into(),
                operations: debit([("amount".to_owned(), 5)]),
            }],
        };
        let policy = v1::RetryPolicy {
            max_attempts: 5,
            ..v1::RetryPolicy::default()
        };
        let plain = action(|_, _| {});
        let all = [
            one(&|_, _| {}),
            one(&|step, _| step.name = "pay".into()),
            one(&|step, _| step.set_kind(v1::StepKind::Pivot)),
            one(&|step, _| step.after = vec!["x".into()]),
            one(&|step, _| step.retry = Some(policy)),
            one(&|step, _| step.work = Some(Work::Group(group.clone()))),
            one(&|_, action| action.participant = "bank".into()),
            one(&|_, action| action.compensation = action.operation.clone()),
            one(&|_, action| action.compensation = action.operation.take()),
            of_saga(&[plain.clone(), plain.clone()], &[]),
            of_saga(std::slice::from_ref(&plain), &["stock:7".into()]),
            of_saga(&[], &[]),
            fingerprint("shop", &debit([("amount".to_owned(), 5)])),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(
            one(&|step, _| step.set_kind(v1::StepKind::Compensatable)),
            all[0],
            "the unset kind"
        );
        assert_eq!(all[0], PINNED_SAGA);
    }

    const PINNED_SAGA: u64 = 5_421_248_589_535_256_438;

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
