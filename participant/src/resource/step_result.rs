//! What a saga keeps of a statement: JSON, into which later steps refer by paths such as `rows.0.id`.

use std::collections::HashSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Number, Value};
use unanimity_proto::v1::{self, AbortCode, value::Kind};

use crate::{
    operation::Statement,
    participant::{Refusal, STEP_RESULT_BYTES},
};

use super::refusal;

/// `{"affected_rows": 1, "rows": [{"id": 7}]}`; `rows` only where some came back. Refused where it is too large to keep, or where a path could mean
/// two columns.
pub(crate) fn json(statement: &Statement, ran: v1::OperationResult) -> Result<String, Refusal> {
    let invalid = |problem: String| {
        let message = format!("operation {}: {problem}", statement.label);
        refusal(AbortCode::InvalidOperation, message)
    };
    let mut names = HashSet::new();
    if let Some(twice) = ran.columns.iter().find(|name| !names.insert(*name)) {
        return Err(invalid(format!(
            "two columns of its result are called {twice:?}; give them names of their own with AS"
        )));
    }
    let mut result = Map::new();
    result.insert("affected_rows".into(), ran.affected_rows.into());
    if !ran.rows.is_empty() {
        let rows = ran.rows.into_iter().map(|row| object(&ran.columns, row));
        result.insert("rows".into(), rows.collect());
    }
    let text = Value::Object(result).to_string();
    if text.len() > STEP_RESULT_BYTES {
        return Err(invalid(format!(
            "its result has {} bytes, more than the {STEP_RESULT_BYTES} that a saga keeps; return fewer columns or rows",
            text.len()
        )));
    }
    Ok(text)
}

fn object(columns: &[String], row: v1::Row) -> Value {
    let values = row.values.into_iter().map(value);
    columns.iter().cloned().zip(values).collect()
}

/// JSON has no bytes, and no number that is none: both become text.
fn value(value: v1::Value) -> Value {
    match value.kind {
        Some(Kind::Boolean(boolean)) => boolean.into(),
        Some(Kind::Integer(integer)) => integer.into(),
        Some(Kind::Float(float)) => {
            Number::from_f64(float).map_or_else(|| Value::String(float.to_string()), Value::Number)
        }
        Some(Kind::Text(text)) => text.into(),
        Some(Kind::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        // No database gives a reference back.
        Some(Kind::Null(_) | Kind::Reference(_)) | None => Value::Null,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use super::*;

    fn statement() -> Statement {
        Statement {
            label: "look".into(),
            sql: "SELECT".into(),
            arguments: vec![],
            expected_rows: None,
            persistent: false,
        }
    }

    fn ran(columns: &[&str], rows: Vec<Vec<Kind>>) -> v1::OperationResult {
        let row = |values: Vec<Kind>| v1::Row {
            values: values.into_iter().map(crate::resource::kind).collect(),
        };
        v1::OperationResult {
            columns: columns.iter().map(ToString::to_string).collect(),
            rows: rows.into_iter().map(row).collect(),
            affected_rows: 2,
        }
    }

    #[test]
    fn every_kind_of_value_has_its_form() {
        let kinds = vec![
            Kind::Null(true),
            Kind::Boolean(true),
            Kind::Integer(i64::MIN),
            Kind::Float(2.0),
            Kind::Float(f64::NAN),
            Kind::Text("é\"\0".into()),
            Kind::Bytes(vec![1, 255]),
        ];
        let given = ran(&["a", "b", "c", "d", "e", "f", "g"], vec![kinds]);
        assert_eq!(
            json(&statement(), given).unwrap(),
            r#"{"affected_rows":2,"rows":[{"a":null,"b":true,"c":-9223372036854775808,"d":2.0,"e":"NaN","f":"é\"\u0000","g":"Af8="}]}"#
        );
        assert_eq!(
            json(&statement(), ran(&[], vec![])).unwrap(),
            r#"{"affected_rows":2}"#
        );
    }

    #[test]
    fn what_is_too_large_or_has_two_columns_of_one_name_is_refused() {
        let large = ran(
            &["a"],
            vec![vec![Kind::Text("x".repeat(STEP_RESULT_BYTES))]],
        );
        let refused = json(&statement(), large).unwrap_err();
        assert_eq!(refused.code, AbortCode::InvalidOperation);
        assert!(refused.message.contains("return fewer columns or rows"));
        let doubled = ran(&["id", "id"], vec![vec![Kind::Integer(1); 2]]);
        let refused = json(&statement(), doubled).unwrap_err();
        assert!(refused.message.contains("two columns"), "{refused}");
    }
}
