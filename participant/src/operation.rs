//! What a participant can be asked to run: named operations from its configuration and, where switched on, SQL text.
//!
//! Names and values are checked here, before any database is touched. Transaction control is refused: a statement that ended, or
//! silently committed, the branch under the agent's feet would break the promise that a vote makes.

mod dialect;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use serde::Deserialize;
use unanimity_proto::v1::{self, value::Kind};

use crate::participant::Refusal;

pub use self::dialect::Dialect;
pub(crate) use self::dialect::{changes_rows, counts_changes, first_keyword};

/// Names of operations and parameters are at most this long, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The type that a parameter is declared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParameterType {
    /// A truth value.
    Boolean,
    /// A signed 64-bit integer.
    Integer,
    /// A double; an integer of at most 53 bits is taken too.
    Float,
    /// Text; exact decimals too, cast in the statement.
    Text,
    /// Raw bytes.
    Bytes,
}

impl From<ParameterType> for v1::ParameterType {
    fn from(of: ParameterType) -> Self {
        match of {
            ParameterType::Boolean => Self::Boolean,
            ParameterType::Integer => Self::Integer,
            ParameterType::Float => Self::Float,
            ParameterType::Text => Self::Text,
            ParameterType::Bytes => Self::Bytes,
        }
    }
}

/// A value to bind, of a known type. A typed null keeps the types of a cached statement the same from one call to the next.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// NULL, of the declared type; of none in SQL text.
    Null(Option<ParameterType>),
    /// A truth value.
    Boolean(bool),
    /// A signed 64-bit integer.
    Integer(i64),
    /// A double.
    Float(f64),
    /// Text.
    Text(String),
    /// Raw bytes.
    Bytes(Vec<u8>),
}

/// An operation as a configuration file gives it: `[operation.<name>]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationConfig {
    /// One statement, with the database's own placeholders.
    pub sql: String,
    /// In the order of the placeholders.
    #[serde(default)]
    pub parameters: Vec<ParameterConfig>,
    /// How many rows it must change (or return), neither more nor fewer.
    pub expected_rows: Option<u64>,
}

/// A parameter as a configuration file gives it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterConfig {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: ParameterType,
}

/// A named operation.
#[derive(Clone, Debug)]
pub struct NamedOperation {
    /// `[A-Za-z0-9_.-]`, 1 to 64 bytes.
    pub name: String,
    /// One statement, with the database's own placeholders (`$1` or `?`).
    pub sql: String,
    /// Name and type, in the order of the placeholders.
    pub parameters: Vec<(String, ParameterType)>,
    /// How many rows it must change (or return).
    pub expected_rows: Option<u64>,
}

/// A catalog that can't be used; the message names the operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CatalogError(pub String);

/// The operations that a participant offers.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    operations: BTreeMap<String, Arc<Prepared>>,
    allow_sql: bool,
}

#[derive(Debug)]
struct Prepared {
    operation: NamedOperation,
    sql: Arc<str>,
}

/// An operation with its values checked, ready to run.
#[derive(Clone, Debug)]
pub struct Statement {
    /// For messages: the operation's name, or `SQL`.
    pub label: Arc<str>,
    /// What to send. The label leads it as a comment: drivers cache a prepared statement, its parameter types included, by this text
    /// alone, and two operations with one text and different types must never share an entry.
    pub sql: Arc<str>,
    /// In the order of the placeholders.
    pub arguments: Vec<Argument>,
    /// How many rows it must change (or return).
    pub expected_rows: Option<u64>,
    /// Worth a place in the statement cache.
    pub persistent: bool,
}

impl Catalog {
    /// A catalog of these operations; with `allow_sql` SQL text is taken too.
    pub fn new(
        operations: impl IntoIterator<Item = NamedOperation>,
        allow_sql: bool,
    ) -> Result<Self, CatalogError> {
        let mut catalog = Self {
            operations: BTreeMap::new(),
            allow_sql,
        };
        for operation in operations {
            check_definition(&operation)?;
            let name = operation.name.clone();
            let sql = format!("/* {name} */ {}", operation.sql).into();
            if catalog
                .operations
                .insert(name.clone(), Arc::new(Prepared { operation, sql }))
                .is_some()
            {
                return Err(CatalogError(format!("operation {name} is defined twice")));
            }
        }
        Ok(catalog)
    }

    /// A catalog from the `[operation.<name>]` tables of a configuration file.
    pub fn from_config(
        operations: BTreeMap<String, OperationConfig>,
        allow_sql: bool,
    ) -> Result<Self, CatalogError> {
        Self::new(
            operations.into_iter().map(|(name, config)| NamedOperation {
                name,
                sql: config.sql,
                parameters: config
                    .parameters
                    .into_iter()
                    .map(|p| (p.name, p.kind))
                    .collect(),
                expected_rows: config.expected_rows,
            }),
            allow_sql,
        )
    }

    /// Whether SQL text is taken.
    pub fn allows_sql(&self) -> bool {
        self.allow_sql
    }

    /// What to announce in hello.
    pub fn policy(&self) -> v1::OperationPolicy {
        if self.allow_sql {
            v1::OperationPolicy::ListedAndSql
        } else {
            v1::OperationPolicy::Listed
        }
    }

    /// What to list in hello.
    pub fn signatures(&self) -> Vec<v1::OperationSignature> {
        self.operations()
            .map(|operation| signature(&operation.name, &operation.parameters))
            .collect()
    }

    /// The named operations, by name.
    pub fn operations(&self) -> impl Iterator<Item = &NamedOperation> {
        self.operations.values().map(|prepared| &prepared.operation)
    }

    /// Looks the operation up and checks its values. A refusal names the field that is wrong.
    pub fn resolve(
        &self,
        operation: &v1::Operation,
        dialect: Dialect,
    ) -> Result<Statement, Refusal> {
        match &operation.statement {
            Some(v1::operation::Statement::Name(name)) => {
                self.resolve_name(name, operation, dialect)
            }
            Some(v1::operation::Statement::Sql(sql)) => self.resolve_sql(sql, operation, dialect),
            None => Err(invalid("operation has neither a name nor SQL text")),
        }
    }

    fn resolve_name(
        &self,
        name: &str,
        operation: &v1::Operation,
        dialect: Dialect,
    ) -> Result<Statement, Refusal> {
        let Some(found) = self.operations.get(name) else {
            return Err(invalid(format!("operation {name:?} is unknown here")));
        };
        let declared = &found.operation.parameters;
        let arguments = arguments(name, declared, operation, |argument| {
            storable(argument, dialect)
        })?;
        Ok(Statement {
            label: name.into(),
            sql: Arc::clone(&found.sql),
            arguments,
            expected_rows: found.operation.expected_rows,
            persistent: true,
        })
    }

    fn resolve_sql(
        &self,
        sql: &str,
        operation: &v1::Operation,
        dialect: Dialect,
    ) -> Result<Statement, Refusal> {
        if !self.allow_sql {
            return Err(invalid(
                "this participant takes no SQL text, only the operations that its configuration names",
            ));
        }
        if !operation.parameters.is_empty() {
            return Err(invalid(
                "SQL text takes arguments by position, not parameters by name",
            ));
        }
        dialect
            .check(sql)
            .map_err(|problem| invalid(format!("SQL: {problem}")))?;
        let argument = |(index, value): (usize, &v1::Value)| {
            untyped(value)
                .and_then(|argument| storable(argument, dialect))
                .map_err(|problem| invalid(format!("SQL: argument {} {problem}", index + 1)))
        };
        Ok(Statement {
            label: "SQL".into(),
            sql: format!("/* SQL */ {sql}").into(),
            arguments: operation
                .arguments
                .iter()
                .enumerate()
                .map(argument)
                .collect::<Result<_, _>>()?,
            expected_rows: None,
            persistent: false,
        })
    }

    /// Checks the text of every named operation for this database.
    pub(crate) fn check(&self, dialect: Dialect) -> Result<(), CatalogError> {
        for operation in self.operations() {
            dialect.check(&operation.sql).map_err(|problem| {
                CatalogError(format!("operation {}: {problem}", operation.name))
            })?;
        }
        Ok(())
    }
}

impl Statement {
    /// Checks the number of rows, changed or returned, against what the operation expects.
    pub(crate) fn check_rows(&self, rows: u64) -> Result<(), Refusal> {
        match self.expected_rows {
            Some(expected) if expected != rows => Err(Refusal {
                code: v1::AbortCode::Refused,
                message: format!(
                    "operation {} changed {rows} rows, expected {expected}",
                    self.label
                ),
            }),
            _ => Ok(()),
        }
    }
}

fn check_definition(operation: &NamedOperation) -> Result<(), CatalogError> {
    let name = &operation.name;
    check_names(name, &operation.parameters)?;
    if operation.sql.trim().is_empty() {
        return Err(CatalogError(format!("operation {name}: sql is empty")));
    }
    Ok(())
}

/// Checks how an operation and its parameters are named.
pub(crate) fn check_names(
    name: &str,
    parameters: &[(String, ParameterType)],
) -> Result<(), CatalogError> {
    let legal = |name: &str| {
        !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    if !legal(name) {
        return Err(CatalogError(format!(
            "operation name {name:?}: use 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 _ . -"
        )));
    }
    let mut seen = HashSet::new();
    for (parameter, _) in parameters {
        if !legal(parameter) {
            return Err(CatalogError(format!(
                "operation {name}: parameter name {parameter:?} is not legal"
            )));
        }
        if !seen.insert(parameter) {
            return Err(CatalogError(format!(
                "operation {name}: parameter {parameter} is declared twice"
            )));
        }
    }
    Ok(())
}

/// The values given to a named operation, checked and in the order of their declaration. `check` says what else they must be.
pub(crate) fn arguments(
    name: &str,
    declared: &[(String, ParameterType)],
    operation: &v1::Operation,
    check: impl Fn(Argument) -> Result<Argument, String>,
) -> Result<Vec<Argument>, Refusal> {
    if !operation.arguments.is_empty() {
        return Err(invalid(format!(
            "operation {name}: arguments are for SQL text; give parameters by name"
        )));
    }
    if let Some(unknown) = operation
        .parameters
        .keys()
        .find(|given| declared.iter().all(|(name, _)| name != *given))
    {
        return Err(invalid(format!(
            "operation {name}: parameter {unknown:?} is unknown"
        )));
    }
    let argument = |(parameter, kind): &(String, ParameterType)| {
        let at = || format!("operation {name}: parameter {parameter}");
        let value = operation
            .parameters
            .get(parameter)
            .ok_or_else(|| invalid(format!("{} is missing", at())))?;
        typed(value, *kind)
            .and_then(&check)
            .map_err(|problem| invalid(format!("{} {problem}", at())))
    };
    declared.iter().map(argument).collect()
}

/// What to list of an operation in hello.
pub(crate) fn signature(
    name: &str,
    parameters: &[(String, ParameterType)],
) -> v1::OperationSignature {
    let parameter = |(name, kind): &(String, ParameterType)| v1::ParameterSignature {
        name: name.clone(),
        r#type: v1::ParameterType::from(*kind).into(),
    };
    v1::OperationSignature {
        name: name.into(),
        parameters: parameters.iter().map(parameter).collect(),
    }
}

pub(crate) fn invalid(message: impl Into<String>) -> Refusal {
    Refusal {
        code: v1::AbortCode::InvalidOperation,
        message: message.into(),
    }
}

fn typed(value: &v1::Value, kind: ParameterType) -> Result<Argument, String> {
    /// Doubles hold every integer up to here exactly.
    const EXACT: u64 = 1 << 53;
    let argument = match (untyped(value)?, kind) {
        (Argument::Null(_), kind) => Argument::Null(Some(kind)),
        (Argument::Integer(integer), ParameterType::Float) if integer.unsigned_abs() <= EXACT => {
            Argument::Float(integer as f64)
        }
        (argument @ Argument::Boolean(_), ParameterType::Boolean)
        | (argument @ Argument::Integer(_), ParameterType::Integer)
        | (argument @ Argument::Float(_), ParameterType::Float)
        | (argument @ Argument::Text(_), ParameterType::Text)
        | (argument @ Argument::Bytes(_), ParameterType::Bytes) => argument,
        _ => {
            return Err(format!(
                "must be of type {}",
                format!("{kind:?}").to_lowercase()
            ));
        }
    };
    Ok(argument)
}

/// SQLite and MySQL would make NULL of what is no number, and say nothing.
fn storable(argument: Argument, dialect: Dialect) -> Result<Argument, String> {
    match (&argument, dialect) {
        (Argument::Float(float), Dialect::Sqlite | Dialect::Mysql) if float.is_nan() => {
            Err("is NaN, which this database can't hold".into())
        }
        _ => Ok(argument),
    }
}

fn untyped(value: &v1::Value) -> Result<Argument, String> {
    match &value.kind {
        Some(Kind::Null(true)) => Ok(Argument::Null(None)),
        Some(Kind::Null(false)) => Err("has null = false, which means nothing".into()),
        Some(Kind::Boolean(value)) => Ok(Argument::Boolean(*value)),
        Some(Kind::Integer(value)) => Ok(Argument::Integer(*value)),
        Some(Kind::Float(value)) => Ok(Argument::Float(*value)),
        Some(Kind::Text(value)) => Ok(Argument::Text(value.clone())),
        Some(Kind::Bytes(value)) => Ok(Argument::Bytes(value.to_vec())),
        // The coordinator puts the values in before it sends a step.
        Some(Kind::Reference(_)) => Err(
            "is a reference to another step's result, which has a meaning only in a saga's definition"
                .into(),
        ),
        None => Err("has no value; NULL must be said".into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        #[derive(Deserialize)]
        struct File {
            operation: BTreeMap<String, OperationConfig>,
        }
        let file: File = toml::from_str(
            r#"
            [operation.debit]
            sql = "UPDATE account SET balance = balance - ? WHERE id = ?"
            parameters = [{name = "amount", type = "integer"}, {name = "id", type = "text"}]
            expected_rows = 1
            [operation.rate]
            sql = "UPDATE rate SET value = ?"
            parameters = [{name = "value", type = "float"}]
            "#,
        )
        .unwrap();
        Catalog::from_config(file.operation, false).unwrap()
    }

    fn value(kind: Kind) -> v1::Value {
        v1::Value { kind: Some(kind) }
    }

    fn named(name: &str, parameters: &[(&str, Kind)]) -> v1::Operation {
        v1::Operation {
            statement: Some(v1::operation::Statement::Name(name.into())),
            parameters: parameters
                .iter()
                .map(|(name, kind)| ((*name).into(), value(kind.clone())))
                .collect(),
            arguments: vec![],
        }
    }

    #[test]
    fn a_named_operation_resolves_with_values_in_the_order_of_its_placeholders() {
        let operation = named(
            "debit",
            &[("id", Kind::Text("a".into())), ("amount", Kind::Integer(5))],
        );
        let statement = catalog().resolve(&operation, Dialect::Sqlite).unwrap();
        assert_eq!(
            statement.arguments,
            [Argument::Integer(5), Argument::Text("a".into())]
        );
        assert_eq!(
            &*statement.sql,
            "/* debit */ UPDATE account SET balance = balance - ? WHERE id = ?"
        );
        assert_eq!(statement.expected_rows, Some(1));
    }

    #[test]
    fn a_wrong_operation_is_refused_by_the_name_of_what_is_wrong() {
        let text = |t: &str| Kind::Text(t.into());
        let cases = [
            (named("theft", &[]), "\"theft\" is unknown"),
            (
                named("debit", &[("amount", Kind::Integer(1))]),
                "parameter id is missing",
            ),
            (
                named("debit", &[("amount", text("1")), ("id", text("a"))]),
                "parameter amount must be of type integer",
            ),
            (
                named(
                    "debit",
                    &[
                        ("amount", Kind::Integer(1)),
                        ("id", text("a")),
                        ("x", text("a")),
                    ],
                ),
                "parameter \"x\" is unknown",
            ),
            (
                named("debit", &[("amount", Kind::Null(false)), ("id", text("a"))]),
                "parameter amount has null = false",
            ),
            (
                named("rate", &[("value", Kind::Integer(i64::MAX))]),
                "parameter value must be of type float",
            ),
            (
                named("rate", &[("value", Kind::Reference("order.id".into()))]),
                "parameter value is a reference",
            ),
        ];
        for (operation, expected) in cases {
            let refusal = catalog().resolve(&operation, Dialect::Sqlite).unwrap_err();
            assert_eq!(refusal.code, v1::AbortCode::InvalidOperation);
            assert!(refusal.message.contains(expected), "{}", refusal.message);
        }
    }

    #[test]
    fn what_is_no_number_is_refused_where_it_would_become_null() {
        let rate = named("rate", &[("value", Kind::Float(f64::NAN))]);
        let sql = v1::Operation {
            statement: Some(v1::operation::Statement::Sql("SELECT 1".into())),
            arguments: vec![value(Kind::Float(f64::NAN))],
            ..v1::Operation::default()
        };
        let free = Catalog::new([], true).unwrap();
        for dialect in [Dialect::Sqlite, Dialect::Mysql] {
            let refusal = catalog().resolve(&rate, dialect).unwrap_err();
            assert_eq!(refusal.code, v1::AbortCode::InvalidOperation);
            assert_eq!(
                refusal.message,
                "operation rate: parameter value is NaN, which this database can't hold"
            );
            let refusal = free.resolve(&sql, dialect).unwrap_err();
            assert!(
                refusal.message.contains("argument 1 is NaN"),
                "{}",
                refusal.message
            );
        }
        assert!(catalog().resolve(&rate, Dialect::Postgres).is_ok());
        assert!(free.resolve(&sql, Dialect::Postgres).is_ok());
        let infinite = named("rate", &[("value", Kind::Float(f64::INFINITY))]);
        assert!(catalog().resolve(&infinite, Dialect::Sqlite).is_ok());
    }

    #[test]
    fn sql_text_is_refused_unless_switched_on() {
        let operation = v1::Operation {
            statement: Some(v1::operation::Statement::Sql("SELECT 1".into())),
            ..v1::Operation::default()
        };
        assert!(catalog().resolve(&operation, Dialect::Sqlite).is_err());
        let free = Catalog::new([], true).unwrap();
        assert!(
            !free
                .resolve(&operation, Dialect::Sqlite)
                .unwrap()
                .persistent
        );
    }
}
