//! What clients send, checked field by field. Inside, everything is known to be well formed.

use std::{collections::HashSet, time::Duration};

use tonic::metadata::MetadataMap;
use unanimity_engine::{ParticipantName, RequestId, TransactionId};
use unanimity_proto::v1;

use crate::error::Refused;

pub(crate) mod saga;

/// Operations of one branch.
const OPERATIONS: usize = 1_000;
/// The longest reason that a client or an operator may give, in bytes.
const REASON_BYTES: usize = 1_024;
/// The shortest reason for a resolution, in characters.
const RESOLUTION_REASON: usize = 10;
/// Entries of a page where the request names no number.
const PAGE_DEFAULT: usize = 100;
/// Entries of a page at most.
const PAGE_MAX: usize = 1_000;

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// A transaction, until it is decided.
    pub(crate) transaction: Timeout,
    /// A saga, from its beginning until it turns back.
    pub(crate) saga: Timeout,
    /// A saga's wait for its locks.
    pub(crate) lock: Timeout,
}

/// How long one of them may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timeout {
    /// Where the request names none.
    pub(crate) default: Duration,
    /// At most.
    pub(crate) max: Duration,
}

impl Timeout {
    /// Milliseconds, rounded up, of what stands at `field`.
    pub(crate) fn check(
        self,
        field: &str,
        given: Option<prost_types::Duration>,
    ) -> Result<u64, Refused> {
        let refused = |problem: String| Err(Refused::invalid(field, problem));
        let given = given.map_or(Ok(self.default), |given| span(field, given))?;
        if given.is_zero() {
            return refused("must be longer than 0 s".into());
        }
        if given > self.max {
            return refused(format!(
                "is {given:?}, but at most {:?} is allowed",
                self.max
            ));
        }
        Ok(given.as_nanos().div_ceil(1_000_000) as u64)
    }
}

/// A span of time that stands at `field`.
fn span(field: &str, given: prost_types::Duration) -> Result<Duration, Refused> {
    match (u64::try_from(given.seconds), u32::try_from(given.nanos)) {
        (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) => Ok(Duration::new(seconds, nanos)),
        _ => Err(Refused::invalid(
            field,
            "must not be negative, with nanos below 1000000000",
        )),
    }
}

/// A transaction's id.
pub(crate) fn transaction_id(given: &str) -> Result<TransactionId, Refused> {
    given
        .parse()
        .map_err(|problem: unanimity_engine::MalformedId| {
            Refused::invalid("transaction_id", format!("{given:?} is none: {problem}"))
        })
}

/// A participant's name, which stands at `field`.
pub(crate) fn participant(field: &str, given: &str) -> Result<ParticipantName, Refused> {
    ParticipantName::parse(given).ok_or_else(|| {
        Refused::invalid(
            field,
            format!("{given:?} is no name: 1 to 48 characters of a-z, 0-9, _ and -"),
        )
    })
}

/// A request id; `None` where none is given.
pub(crate) fn request_id(given: &str) -> Result<Option<RequestId>, Refused> {
    if given.is_empty() {
        return Ok(None);
    }
    RequestId::parse(given).map(Some).ok_or_else(|| {
        Refused::invalid(
            "request_id",
            "must be 1 to 64 bytes without control characters",
        )
    })
}

/// How long ago the client first sent its request id; 0 where it says nothing.
pub(crate) fn age_ms(given: Option<prost_types::Duration>) -> Result<u64, Refused> {
    let Some(given) = given else { return Ok(0) };
    let age =
        Duration::try_from(given).map_err(|_| Refused::invalid("age", "must not be negative"))?;
    Ok(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

/// The branches of a submit, or of an atomic group, which stand at `field`.
pub(crate) fn branches(
    field: &str,
    given: Vec<v1::BranchRequest>,
    check: impl Fn(&ParticipantName, &str, &v1::Operation) -> Result<(), Refused>,
) -> Result<Vec<(ParticipantName, Vec<v1::Operation>)>, Refused> {
    if given.is_empty() {
        return Err(Refused::invalid(
            field,
            "must not be empty; name at least one participant",
        ));
    }
    let mut seen = HashSet::new();
    let mut branches = Vec::with_capacity(given.len());
    for (at, branch) in given.into_iter().enumerate() {
        let field = format!("{field}[{at}]");
        let name = distinct(
            &mut seen,
            &format!("{field}.participant"),
            &branch.participant,
        )?;
        if branch.operations.len() > OPERATIONS {
            let problem = format!(
                "{} given, at most {OPERATIONS} allowed",
                branch.operations.len()
            );
            return Err(Refused::invalid(format!("{field}.operations"), problem));
        }
        for (at, operation) in branch.operations.iter().enumerate() {
            check(&name, &format!("{field}.operations[{at}]"), operation)?;
        }
        branches.push((name, branch.operations));
    }
    Ok(branches)
}

/// The participants of a begin; there may be none yet.
pub(crate) fn participants(given: &[String]) -> Result<Vec<ParticipantName>, Refused> {
    let mut seen = HashSet::new();
    given
        .iter()
        .enumerate()
        .map(|(at, name)| distinct(&mut seen, &format!("participants[{at}]"), name))
        .collect()
}

fn distinct(
    seen: &mut HashSet<ParticipantName>,
    field: &str,
    given: &str,
) -> Result<ParticipantName, Refused> {
    let name = participant(field, given)?;
    if !seen.insert(name.clone()) {
        let problem =
            format!("{given:?} stands there twice; put all its operations into one branch");
        return Err(Refused::invalid(field, problem));
    }
    Ok(name)
}

/// Whether to answer at the decision already.
pub(crate) fn answer_decided(given: i32) -> Result<bool, Refused> {
    match v1::AnswerTime::try_from(given) {
        Ok(v1::AnswerTime::Unspecified | v1::AnswerTime::Completed) => Ok(false),
        Ok(v1::AnswerTime::Decided) => Ok(true),
        Ok(v1::AnswerTime::Accepted) => Err(Refused::invalid(
            "answer_time",
            "ACCEPTED goes only with sagas; say DECIDED to be answered before every branch has committed",
        )),
        Err(_) => Err(Refused::invalid(
            "answer_time",
            format!("{given} is not known here"),
        )),
    }
}

/// A client's reason for an abort; may be empty.
pub(crate) fn reason(given: String) -> Result<String, Refused> {
    if given.len() > REASON_BYTES {
        return Err(Refused::invalid(
            "reason",
            format!("must be at most {REASON_BYTES} bytes long"),
        ));
    }
    Ok(given)
}

/// An operator's reason for a resolution.
pub(crate) fn resolution_reason(given: String) -> Result<String, Refused> {
    if given.trim().chars().count() < RESOLUTION_REASON {
        let problem = format!(
            "must have at least {RESOLUTION_REASON} characters; it is kept for those who ask later"
        );
        return Err(Refused::invalid("reason", problem));
    }
    reason(given)
}

/// Entries of a page.
pub(crate) fn page_size(given: i32) -> Result<usize, Refused> {
    match usize::try_from(given) {
        Ok(0) => Ok(PAGE_DEFAULT),
        Ok(size) => Ok(size.min(PAGE_MAX)),
        Err(_) => Err(Refused::invalid("page_size", "must not be negative")),
    }
}

/// A token that we gave out, read by `parse`; `None` for the first page.
pub(crate) fn page_token<T>(
    given: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Refused> {
    if given.is_empty() {
        return Ok(None);
    }
    parse(given).map(Some).ok_or_else(|| {
        Refused::invalid(
            "page_token",
            "is none that this method gave; start at the first page",
        )
    })
}

/// The W3C trace context of a call; empty where there is none, or none that we would pass on.
pub(crate) fn traceparent(metadata: &MetadataMap) -> String {
    let well_formed = |text: &&str| {
        text.len() == 55
            && text
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'))
    };
    metadata
        .get("traceparent")
        .and_then(|value| value.to_str().ok())
        .filter(well_formed)
        .unwrap_or_default()
        .into()
}

#[cfg(test)]
mod tests {
    use unanimity_engine::Refusal;

    use super::*;

    const TIMEOUT: Timeout = Timeout {
        default: Duration::from_secs(30),
        max: Duration::from_secs(3_600),
    };

    fn field<T: std::fmt::Debug>(result: Result<T, Refused>) -> String {
        match result {
            Err(Refused::Engine(Refusal::Invalid { field, .. })) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_timeout_is_positive_and_bounded_and_never_shortened_to_nothing() {
        let timeout = |seconds, nanos| {
            TIMEOUT.check("timeout", Some(prost_types::Duration { seconds, nanos }))
        };
        assert_eq!(TIMEOUT.check("timeout", None), Ok(30_000));
        assert_eq!(timeout(0, 1), Ok(1));
        assert_eq!(timeout(3_600, 0), Ok(3_600_000));
        for (seconds, nanos) in [
            (0, 0),
            (-1, 0),
            (0, -1),
            (3_600, 1),
            (i64::MAX, 0),
            (i64::MIN, -1),
            (1, 1_000_000_000),
        ] {
            assert_eq!(
                field(timeout(seconds, nanos)),
                "timeout",
                "{seconds} s {nanos} ns"
            );
        }
    }

    #[test]
    fn branches_name_the_field_that_is_wrong() {
        let branch = |name: &str, operations: usize| v1::BranchRequest {
            participant: name.into(),
            operations: vec![v1::Operation::default(); operations],
        };
        let check = |given| branches("branches", given, |_, _, _| Ok(()));
        assert_eq!(field(check(vec![])), "branches");
        assert_eq!(
            field(check(vec![branch("a", 1), branch("A", 1)])),
            "branches[1].participant"
        );
        assert_eq!(
            field(check(vec![branch("a", 1), branch("a", 1)])),
            "branches[1].participant"
        );
        assert_eq!(
            field(check(vec![branch("a", 1_001)])),
            "branches[0].operations"
        );
        let refuse = |_: &_, field: &str, _: &_| Err(Refused::invalid(field, "no"));
        assert_eq!(
            field(branches("branches", vec![branch("a", 1)], refuse)),
            "branches[0].operations[0]"
        );
        assert!(check(vec![branch("a", 1_000), branch("b", 0)]).is_ok());
    }

    #[test]
    fn other_fields_are_checked_too() {
        assert_eq!(field(transaction_id("u1.x")), "transaction_id");
        assert_eq!(field(request_id(&"x".repeat(65))), "request_id");
        assert_eq!(field(request_id("a\nb")), "request_id");
        assert_eq!(request_id(""), Ok(None));
        assert_eq!(
            field(participants(&["a".into(), "a".into()])),
            "participants[1]"
        );
        assert_eq!(field(answer_decided(9)), "answer_time");
        let accepted = v1::AnswerTime::Accepted.into();
        assert_eq!(field(answer_decided(accepted)), "answer_time");
        assert_eq!(answer_decided(0), Ok(false));
        assert_eq!(field(reason("x".repeat(1_025))), "reason");
        assert_eq!(field(resolution_reason("too short".into())), "reason");
        assert_eq!(field(page_size(-1)), "page_size");
        assert_eq!(
            (page_size(0), page_size(5), page_size(5_000)),
            (Ok(100), Ok(5), Ok(1_000))
        );
        assert_eq!(field(page_token("x", |_| None::<()>)), "page_token");
    }

    #[test]
    fn only_a_well_formed_trace_context_is_passed_on() {
        let mut metadata = MetadataMap::new();
        assert_eq!(traceparent(&metadata), "");
        metadata.insert("traceparent", "nonsense".parse().expect("ascii"));
        assert_eq!(traceparent(&metadata), "");
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        metadata.insert("traceparent", good.parse().expect("ascii"));
        assert_eq!(traceparent(&metadata), good);
    }
}
