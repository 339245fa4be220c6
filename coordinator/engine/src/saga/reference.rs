//! References: values out of the results of earlier steps.
//!
//! ```text
//! reference = step "." path | "transaction.id"
//! path      = segment *( "." segment )        a field of an object, or an index into a list, from 0
//! ```
//!
//! `order.rows.0.id` is the column `id` of the first row that the step `order` returned.

use std::{collections::HashMap, fmt, str::FromStr};

use crate::{
    effect::{Bound, Scalar},
    id::{StepName, TransactionId},
};

/// The longest reference, in bytes.
const REFERENCE_BYTES: usize = 256;

/// A value that is known only when the saga runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// The saga's own id.
    TransactionId,
    /// A value out of a step's result.
    Result {
        /// Whose.
        step: StepName,
        /// Fields and indices, from the outside in.
        path: Vec<String>,
    },
}

/// The text is no reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a reference looks like step.field, step.rows.0.column, or transaction.id")]
pub struct MalformedReference;

impl FromStr for Reference {
    type Err = MalformedReference;

    fn from_str(text: &str) -> Result<Self, MalformedReference> {
        if text == "transaction.id" {
            return Ok(Reference::TransactionId);
        }
        let (step, path) = text.split_once('.').ok_or(MalformedReference)?;
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        if text.len() > REFERENCE_BYTES || path.iter().any(String::is_empty) {
            return Err(MalformedReference);
        }
        let step = StepName::parse(step).ok_or(MalformedReference)?;
        Ok(Reference::Result { step, path })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::TransactionId => f.write_str("transaction.id"),
            Reference::Result { step, path } => write!(f, "{step}.{}", path.join(".")),
        }
    }
}

/// Where a value goes in a step's work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The operation's index; 0 but in a group's branch.
    pub operation: u32,
    /// Which of its values.
    pub argument: Argument,
}

/// One of an operation's values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Argument {
    /// Of a named operation.
    Parameter(String),
    /// Of SQL text, by position.
    Position(u32),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.argument {
            Argument::Parameter(name) => write!(f, "parameters.{name}"),
            Argument::Position(at) => write!(f, "arguments[{at}]"),
        }
    }
}

/// A reference and its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    /// Where its value goes.
    pub place: Place,
    /// What it refers to.
    pub reference: Reference,
}

/// Looks all references up. `result` gives a step's result, JSON.
///
/// # Errors
/// What is missing, for people.
pub(crate) fn resolve<'a>(
    bindings: &[Binding],
    id: TransactionId,
    result: impl Fn(&StepName) -> Option<&'a [u8]>,
) -> Result<Vec<Bound>, String> {
    // A result may be long, and many references go to it.
    let mut read = HashMap::new();
    let mut value = |binding: &Binding| match &binding.reference {
        Reference::TransactionId => Ok(Scalar::Text(id.to_string())),
        Reference::Result { step, path } => {
            let json = read
                .entry(step.clone())
                .or_insert_with(|| parse(result(step).unwrap_or_default()));
            let found = json.as_ref().map_err(|problem| (*problem).to_owned());
            found
                .and_then(|json| look_up(json, path))
                .map_err(|problem| format!("{}: {problem}", binding.reference))
        }
    };
    bindings
        .iter()
        .map(|binding| {
            Ok(Bound {
                place: binding.place.clone(),
                value: value(binding)?,
            })
        })
        .collect()
}

fn parse(json: &[u8]) -> Result<serde_json::Value, &'static str> {
    if json.is_empty() {
        return Err("the step gave no result");
    }
    serde_json::from_slice(json).map_err(|_| "the step's result is not JSON")
}

fn look_up(whole: &serde_json::Value, path: &[String]) -> Result<Scalar, String> {
    let mut value = whole;
    for (depth, segment) in path.iter().enumerate() {
        let inner = match value {
            serde_json::Value::Array(list) => {
                segment.parse().ok().and_then(|at: usize| list.get(at))
            }
            other => other.get(segment),
        };
        value = inner
            .ok_or_else(|| format!("the step's result has no {}", path[..=depth].join(".")))?;
    }
    match value {
        serde_json::Value::Null => Ok(Scalar::Null),
        serde_json::Value::Bool(value) => Ok(Scalar::Boolean(*value)),
        serde_json::Value::String(value) => Ok(Scalar::Text(value.clone())),
        serde_json::Value::Number(value) => value
            .as_i64()
            .map(Scalar::Integer)
            .or_else(|| {
                value
                    .as_f64()
                    .filter(|_| !value.is_u64())
                    .map(Scalar::Float)
            })
            .ok_or_else(|| format!("{value} is out of the range of 64-bit integers")),
        serde_json::Value::Array(_) | serde_json::Value::Object(_) => {
            Err("that is a list or an object; refer to one of its values".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_reads_back_as_it_was_written() {
        for text in ["transaction.id", "order.id", "order.rows.0.id"] {
            assert_eq!(
                text.parse::<Reference>().map(|r| r.to_string()),
                Ok(text.into())
            );
        }
        for wrong in [
            "",
            "order",
            "order.",
            ".id",
            "order..id",
            "Order.id",
            "transaction.token",
        ] {
            assert_eq!(
                wrong.parse::<Reference>(),
                Err(MalformedReference),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_value_is_found_by_fields_and_indices() {
        let json = br#"{"rows":[{"id":7,"rate":0.5,"ok":true,"note":null,"name":"x"}],"big":18446744073709551615}"#;
        let find = |path: &str| {
            let path: Vec<_> = path.split('.').map(str::to_owned).collect();
            look_up(&parse(json).expect("JSON"), &path)
        };
        assert_eq!(find("rows.0.id"), Ok(Scalar::Integer(7)));
        assert_eq!(find("rows.0.rate"), Ok(Scalar::Float(0.5)));
        assert_eq!(find("rows.0.ok"), Ok(Scalar::Boolean(true)));
        assert_eq!(find("rows.0.note"), Ok(Scalar::Null));
        assert_eq!(find("rows.0.name"), Ok(Scalar::Text("x".into())));
        for wrong in [
            "rows",
            "rows.1.id",
            "rows.x",
            "rows.0.none",
            "rows.0.id.x",
            "big",
        ] {
            assert!(find(wrong).is_err(), "{wrong}");
        }
        assert!(parse(b"").is_err());
        assert!(parse(b"<html>").is_err());
    }
}
