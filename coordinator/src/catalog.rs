//! What each participant can do, as its last hello said; so that a misspelt operation or parameter is refused before anything starts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use parking_lot::RwLock;
use unanimity_engine::ParticipantName;
use unanimity_proto::v1::{
    self, OperationPolicy, ParameterType, operation::Statement, value::Kind,
};

use crate::error::Refused;

/// The signatures of all participants that were welcomed since the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog(Arc<RwLock<HashMap<ParticipantName, Arc<Signatures>>>>);

/// What one participant takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signatures {
    policy: OperationPolicy,
    operations: BTreeMap<String, BTreeMap<String, ParameterType>>,
}

impl Catalog {
    /// A participant was welcomed. Where its agents differ, as in a rolling update, the newest counts.
    pub(crate) fn learn(&self, participant: ParticipantName, signatures: Signatures) {
        self.0.write().insert(participant, Arc::new(signatures));
    }

    /// Checks an operation, which stands at `field` of the request. A participant that was not seen since the start is not checked: the
    /// engine knows better why it can't take part, and the participant checks for itself.
    pub(crate) fn check(
        &self,
        participant: &ParticipantName,
        field: &str,
        operation: &v1::Operation,
    ) -> Result<(), Refused> {
        check_shape(field, operation)?;
        let known = self.0.read().get(participant).cloned();
        match known {
            Some(signatures) => signatures.check(participant, field, operation),
            None => Ok(()),
        }
    }
}

impl Signatures {
    /// Reads them from a hello.
    pub(crate) fn parse(
        policy: OperationPolicy,
        operations: Vec<v1::OperationSignature>,
    ) -> Result<Self, Refused> {
        if policy == OperationPolicy::Unspecified {
            return Err(Refused::invalid(
                "hello.operation_policy",
                "must be set to a policy that is known here",
            ));
        }
        let mut table = BTreeMap::new();
        for (at, operation) in operations.into_iter().enumerate() {
            let field = format!("hello.operations[{at}]");
            let parameters = parameters(&field, operation.parameters)?;
            if operation.name.is_empty() {
                return Err(Refused::invalid(field + ".name", "must not be empty"));
            }
            if let Some(name) = insert_new(&mut table, operation.name, parameters) {
                return Err(Refused::invalid(
                    field + ".name",
                    format!("{name:?} stands there twice"),
                ));
            }
        }
        Ok(Signatures {
            policy,
            operations: table,
        })
    }

    fn check(
        &self,
        participant: &ParticipantName,
        field: &str,
        operation: &v1::Operation,
    ) -> Result<(), Refused> {
        match (self.policy, &operation.statement) {
            (OperationPolicy::Any | OperationPolicy::Unspecified, _) | (_, None) => Ok(()),
            (OperationPolicy::ListedAndSql, Some(Statement::Sql(_))) => Ok(()),
            (OperationPolicy::Listed, Some(Statement::Sql(_))) => Err(Refused::invalid(
                format!("{field}.sql"),
                format!(
                    "participant {participant:?} takes no SQL text; name one of its operations, or start it with --allow-sql"
                ),
            )),
            (
                OperationPolicy::Listed | OperationPolicy::ListedAndSql,
                Some(Statement::Name(name)),
            ) => {
                let Some(wanted) = self.operations.get(name) else {
                    return Err(Refused::OperationUnknown {
                        field: format!("{field}.name"),
                        participant: participant.as_str().into(),
                        operation: name.clone(),
                        offered: self.offered(),
                    });
                };
                check_parameters(field, name, wanted, &operation.parameters)
            }
        }
    }

    fn offered(&self) -> String {
        match self
            .operations
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .as_slice()
        {
            [] => "none".into(),
            names => names.join(", "),
        }
    }
}

fn parameters(
    field: &str,
    parameters: Vec<v1::ParameterSignature>,
) -> Result<BTreeMap<String, ParameterType>, Refused> {
    let mut table = BTreeMap::new();
    for (at, parameter) in parameters.into_iter().enumerate() {
        let kind = parameter.r#type();
        let field = format!("{field}.parameters[{at}]");
        if kind == ParameterType::Unspecified {
            return Err(Refused::invalid(
                field + ".type",
                "must be set to a type that is known here",
            ));
        }
        if parameter.name.is_empty() {
            return Err(Refused::invalid(field + ".name", "must not be empty"));
        }
        if let Some(name) = insert_new(&mut table, parameter.name, kind) {
            return Err(Refused::invalid(
                field + ".name",
                format!("{name:?} stands there twice"),
            ));
        }
    }
    Ok(table)
}

/// Inserts, or gives the key back where it is taken.
fn insert_new<T>(table: &mut BTreeMap<String, T>, key: String, value: T) -> Option<String> {
    if table.contains_key(&key) {
        return Some(key);
    }
    table.insert(key, value);
    None
}

/// What holds for every operation, whoever runs it.
fn check_shape(field: &str, operation: &v1::Operation) -> Result<(), Refused> {
    match &operation.statement {
        None => return Err(Refused::invalid(field, "needs a name or SQL text")),
        Some(Statement::Name(name)) if name.is_empty() => {
            return Err(Refused::invalid(
                format!("{field}.name"),
                "must not be empty",
            ));
        }
        Some(Statement::Sql(text)) if text.trim().is_empty() => {
            return Err(Refused::invalid(
                format!("{field}.sql"),
                "must not be empty",
            ));
        }
        Some(Statement::Name(_)) if !operation.arguments.is_empty() => {
            return Err(Refused::invalid(
                format!("{field}.arguments"),
                "go with SQL text; a named operation takes parameters",
            ));
        }
        Some(Statement::Sql(_)) if !operation.parameters.is_empty() => {
            return Err(Refused::invalid(
                format!("{field}.parameters"),
                "go with a named operation; SQL text takes arguments",
            ));
        }
        Some(_) => {}
    }
    for (name, value) in &operation.parameters {
        check_value(&format!("{field}.parameters.{name}"), value)?;
    }
    for (at, value) in operation.arguments.iter().enumerate() {
        check_value(&format!("{field}.arguments[{at}]"), value)?;
    }
    Ok(())
}

fn check_value(field: &str, value: &v1::Value) -> Result<(), Refused> {
    match value.kind {
        None => Err(Refused::invalid(
            field,
            "has no value; send null: true for NULL",
        )),
        Some(Kind::Null(false)) => Err(Refused::invalid(format!("{field}.null"), "must be true")),
        Some(_) => Ok(()),
    }
}

fn check_parameters(
    field: &str,
    operation: &str,
    wanted: &BTreeMap<String, ParameterType>,
    given: &HashMap<String, v1::Value>,
) -> Result<(), Refused> {
    for (name, kind) in wanted {
        let field = format!("{field}.parameters.{name}");
        let Some(value) = given.get(name) else {
            return Err(Refused::invalid(
                field,
                format!("is missing; operation {operation:?} needs it"),
            ));
        };
        if !fits(*kind, value) {
            return Err(Refused::invalid(
                field,
                format!("must be {}, or null", in_words(*kind)),
            ));
        }
    }
    // The smallest, so that the same request gets the same answer.
    match given
        .keys()
        .filter(|name| !wanted.contains_key(*name))
        .min()
    {
        Some(name) => Err(Refused::invalid(
            format!("{field}.parameters.{name}"),
            format!("is no parameter of operation {operation:?}"),
        )),
        None => Ok(()),
    }
}

fn fits(wanted: ParameterType, value: &v1::Value) -> bool {
    match (wanted, &value.kind) {
        (_, None) => false,
        (_, Some(Kind::Null(_))) => true,
        // Its type is known only when the saga runs; the participant checks it then.
        (_, Some(Kind::Reference(_))) => true,
        (ParameterType::Unspecified, Some(_)) => true,
        (ParameterType::Boolean, Some(kind)) => matches!(kind, Kind::Boolean(_)),
        (ParameterType::Integer, Some(kind)) => matches!(kind, Kind::Integer(_)),
        (ParameterType::Float, Some(kind)) => matches!(kind, Kind::Float(_) | Kind::Integer(_)),
        (ParameterType::Text, Some(kind)) => matches!(kind, Kind::Text(_)),
        (ParameterType::Bytes, Some(kind)) => matches!(kind, Kind::Bytes(_)),
    }
}

fn in_words(kind: ParameterType) -> &'static str {
    match kind {
        ParameterType::Unspecified => "a value",
        ParameterType::Boolean => "a boolean",
        ParameterType::Integer => "an integer",
        ParameterType::Float => "a float or an integer",
        ParameterType::Text => "text",
        ParameterType::Bytes => "bytes",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ParticipantName {
        ParticipantName::parse("accounts").expect("a name")
    }

    fn catalog(policy: OperationPolicy) -> Catalog {
        let parameter = |name: &str, kind: ParameterType| v1::ParameterSignature {
            name: name.into(),
            r#type: kind.into(),
        };
        let debit = v1::OperationSignature {
            name: "debit".into(),
            parameters: vec![
                parameter("id", ParameterType::Text),
                parameter("amount", ParameterType::Float),
            ],
        };
        let catalog = Catalog::default();
        catalog.learn(
            name(),
            Signatures::parse(policy, vec![debit]).expect("signatures"),
        );
        catalog
    }

    fn value(kind: Kind) -> v1::Value {
        v1::Value { kind: Some(kind) }
    }

    fn call(statement: Statement, parameters: &[(&str, v1::Value)]) -> v1::Operation {
        v1::Operation {
            statement: Some(statement),
            parameters: parameters
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            arguments: Vec::new(),
        }
    }

    fn check(
        policy: OperationPolicy,
        operation: &v1::Operation,
    ) -> Result<(), (&'static str, String)> {
        catalog(policy)
            .check(&name(), "operation", operation)
            .map_err(|refused| {
                let field = match &refused {
                    Refused::Engine(unanimity_engine::Refusal::Invalid { field, .. })
                    | Refused::OperationUnknown { field, .. } => field.clone(),
                    other => panic!("{other:?}"),
                };
                (refused.reason(), field)
            })
    }

    #[test]
    fn a_listed_operation_with_fitting_parameters_is_taken() {
        let debit = |id, amount| {
            call(
                Statement::Name("debit".into()),
                &[("id", value(id)), ("amount", value(amount))],
            )
        };
        for operation in [
            debit(Kind::Text("a".into()), Kind::Float(1.5)),
            debit(Kind::Text("a".into()), Kind::Integer(1)),
            debit(Kind::Null(true), Kind::Null(true)),
            debit(
                Kind::Reference("order.id".into()),
                Kind::Reference("order.sum".into()),
            ),
        ] {
            assert_eq!(
                check(OperationPolicy::Listed, &operation),
                Ok(()),
                "{operation:?}"
            );
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_field() {
        let text = || value(Kind::Text("a".into()));
        let debit =
            |parameters: &[(&str, v1::Value)]| call(Statement::Name("debit".into()), parameters);
        let sql = || call(Statement::Sql("SELECT 1".into()), &[]);
        let cases = [
            (
                call(Statement::Name("debt".into()), &[]),
                "OPERATION_UNKNOWN",
                "operation.name",
            ),
            (
                debit(&[("id", text())]),
                "INVALID_REQUEST",
                "operation.parameters.amount",
            ),
            (
                debit(&[("id", text()), ("amount", text())]),
                "INVALID_REQUEST",
                "operation.parameters.amount",
            ),
            (
                debit(&[
                    ("id", text()),
                    ("amount", value(Kind::Integer(1))),
                    ("x", text()),
                ]),
                "INVALID_REQUEST",
                "operation.parameters.x",
            ),
            (
                debit(&[("id", v1::Value::default())]),
                "INVALID_REQUEST",
                "operation.parameters.id",
            ),
            (
                debit(&[("id", value(Kind::Null(false)))]),
                "INVALID_REQUEST",
                "operation.parameters.id.null",
            ),
            (sql(), "INVALID_REQUEST", "operation.sql"),
            (v1::Operation::default(), "INVALID_REQUEST", "operation"),
            (
                call(Statement::Name(String::new()), &[]),
                "INVALID_REQUEST",
                "operation.name",
            ),
            (
                v1::Operation {
                    arguments: vec![text()],
                    ..debit(&[])
                },
                "INVALID_REQUEST",
                "operation.arguments",
            ),
        ];
        for (operation, reason, field) in cases {
            assert_eq!(
                check(OperationPolicy::Listed, &operation),
                Err((reason, field.to_owned())),
                "{operation:?}"
            );
        }
        assert_eq!(check(OperationPolicy::ListedAndSql, &sql()), Ok(()));
        assert_eq!(
            check(
                OperationPolicy::Any,
                &call(Statement::Name("whatever".into()), &[])
            ),
            Ok(())
        );
    }

    #[test]
    fn a_participant_that_was_never_seen_is_not_checked() {
        let catalog = Catalog::default();
        let operation = call(Statement::Name("anything".into()), &[]);
        assert_eq!(catalog.check(&name(), "operation", &operation), Ok(()));
    }

    #[test]
    fn a_hello_with_muddled_signatures_is_refused() {
        let twice = v1::OperationSignature {
            name: "debit".into(),
            parameters: Vec::new(),
        };
        let untyped = v1::OperationSignature {
            name: "debit".into(),
            parameters: vec![v1::ParameterSignature {
                name: "x".into(),
                r#type: 0,
            }],
        };
        assert!(Signatures::parse(OperationPolicy::Unspecified, Vec::new()).is_err());
        assert!(Signatures::parse(OperationPolicy::Listed, vec![twice.clone(), twice]).is_err());
        assert!(Signatures::parse(OperationPolicy::Listed, vec![untyped]).is_err());
    }
}
