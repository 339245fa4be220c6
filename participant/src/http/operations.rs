//! What the service offers: named operations, and where each is posted to.

use std::{collections::BTreeMap, fmt, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{Uri, uri::PathAndQuery};
use serde::Deserialize;
use serde_json::{Map, Number, Value};
use unanimity_proto::v1::{self, operation::Statement};

use crate::{
    operation::{
        Argument, CatalogError, ParameterConfig, ParameterType, arguments, check_names, invalid,
        signature,
    },
    participant::Refusal,
};

/// An operation as a configuration file gives it: `[operation.<name>]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OperationConfig {
    #[serde(default)]
    parameters: Vec<ParameterConfig>,
    prepare: Option<String>,
    confirm: Option<String>,
    cancel: Option<String>,
    execute: Option<String>,
    compensate: Option<String>,
    settle: Option<String>,
}

/// Where a kind of request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    path: String,
    uri: Uri,
}

impl Endpoint {
    /// `base` has no slash at its end, `path` has one at its start.
    fn new(base: &str, path: &str) -> Option<Self> {
        let plain = path.starts_with('/') && !path.contains('#');
        // What parses here has no characters that would let it out of its line.
        let parsed: PathAndQuery = plain.then(|| path.parse().ok()).flatten()?;
        Some(Self {
            path: parsed.path().into(),
            uri: format!("{base}{parsed}").parse().ok()?,
        })
    }

    /// The whole address.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }
}

/// For people: without the query, which may hold a secret.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "POST {}", self.path)
    }
}

/// The three endpoints of two-phase commit.
#[derive(Clone, Debug)]
pub struct TwoPhase {
    /// Reserves; or refuses, and then holds nothing.
    pub prepare: Endpoint,
    /// Makes what was reserved real.
    pub confirm: Endpoint,
    /// Gives up what was reserved, if anything was.
    pub cancel: Endpoint,
}

/// A named operation. Which endpoints it has tells what it can be used for.
#[derive(Clone, Debug)]
pub struct HttpOperation {
    /// `[A-Za-z0-9_.-]`, 1 to 64 bytes.
    pub name: String,
    /// Name and type.
    pub parameters: Vec<(String, ParameterType)>,
    /// For two-phase commit.
    pub two_phase: Option<TwoPhase>,
    /// Does a saga's step.
    pub execute: Option<Endpoint>,
    /// Undoes a saga's step.
    pub compensate: Option<Endpoint>,
    /// Tells whether a saga's step took effect.
    pub settle: Option<Endpoint>,
}

/// All operations of a service.
#[derive(Clone, Debug, Default)]
pub struct Operations(BTreeMap<String, Arc<HttpOperation>>);

impl Operations {
    /// From the `[operation.<name>]` tables of a configuration file.
    pub(super) fn from_config(
        base: &str,
        configured: BTreeMap<String, OperationConfig>,
    ) -> Result<Self, CatalogError> {
        if configured.is_empty() {
            return Err(CatalogError(
                "there is none; give at least one [operation.NAME] in the file".into(),
            ));
        }
        let operations = configured.into_iter().map(|(name, config)| {
            let operation = HttpOperation::from_config(base, name.clone(), config)?;
            Ok((name, Arc::new(operation)))
        });
        operations.collect::<Result<_, _>>().map(Self)
    }

    /// Whether it can be told of every step whether it took effect.
    #[must_use]
    pub fn settle_steps(&self) -> bool {
        let mut steps = self.0.values().filter(|it| it.execute.is_some()).peekable();
        steps.peek().is_some() && steps.all(|it| it.settle.is_some())
    }

    /// What to list in hello.
    #[must_use]
    pub fn signatures(&self) -> Vec<v1::OperationSignature> {
        self.0
            .values()
            .map(|operation| signature(&operation.name, &operation.parameters))
            .collect()
    }

    pub(super) fn named(&self, name: &str) -> Result<&Arc<HttpOperation>, Refusal> {
        self.0
            .get(name)
            .ok_or_else(|| invalid(format!("operation {name:?} is unknown here")))
    }

    /// Looks the operation up, and checks its values.
    pub(super) fn resolve(
        &self,
        operation: &v1::Operation,
    ) -> Result<(Arc<HttpOperation>, Map<String, Value>), Refusal> {
        let name = match &operation.statement {
            Some(Statement::Name(name)) => name,
            Some(Statement::Sql(_)) => {
                return Err(invalid(
                    "this participant takes no SQL text, only the operations that its configuration names",
                ));
            }
            None => return Err(invalid("operation has no name")),
        };
        let found = self.named(name)?;
        let values = arguments(name, &found.parameters, operation, finite)?;
        let names = found.parameters.iter().map(|(name, _)| name.clone());
        Ok((
            Arc::clone(found),
            names.zip(values.into_iter().map(json)).collect(),
        ))
    }
}

impl HttpOperation {
    fn from_config(
        base: &str,
        name: String,
        config: OperationConfig,
    ) -> Result<Self, CatalogError> {
        let parameters: Vec<_> = config
            .parameters
            .into_iter()
            .map(|parameter| (parameter.name, parameter.kind))
            .collect();
        check_names(&name, &parameters)?;
        let refused = |problem: &str| CatalogError(format!("operation {name}: {problem}"));
        // A slip of the pen may have put anything here: the key is named, and not the value.
        let endpoint = |key: &str, path: Option<String>| {
            path.map(|path| {
                Endpoint::new(base, &path)
                    .ok_or_else(|| refused(&format!("{key}: expected a path such as \"/{name}\"")))
            })
            .transpose()
        };
        let two_phase = match (
            endpoint("prepare", config.prepare)?,
            endpoint("confirm", config.confirm)?,
            endpoint("cancel", config.cancel)?,
        ) {
            (Some(prepare), Some(confirm), Some(cancel)) => Some(TwoPhase {
                prepare,
                confirm,
                cancel,
            }),
            (None, None, None) => None,
            _ => return Err(refused("prepare, confirm and cancel go together")),
        };
        let execute = endpoint("execute", config.execute)?;
        let compensate = endpoint("compensate", config.compensate)?;
        let settle = endpoint("settle", config.settle)?;
        if settle.is_some() && execute.is_none() {
            return Err(refused("settle tells of execute, which it lacks"));
        }
        if two_phase.is_none() && execute.is_none() && compensate.is_none() {
            return Err(refused(
                "it has no endpoint; give prepare, confirm and cancel, or execute, or compensate",
            ));
        }
        Ok(Self {
            parameters,
            two_phase,
            execute,
            compensate,
            settle,
            name,
        })
    }

    /// One of its endpoints, or why it can't be used so.
    pub(super) fn needs<'a, T>(
        &self,
        endpoint: &'a Option<T>,
        keys: &str,
    ) -> Result<&'a T, Refusal> {
        endpoint.as_ref().ok_or_else(|| {
            invalid(format!(
                "operation {} has no {keys} in this agent's configuration",
                self.name
            ))
        })
    }
}

fn finite(argument: Argument) -> Result<Argument, String> {
    match argument {
        Argument::Float(float) if !float.is_finite() => {
            Err("is no number that JSON can hold".into())
        }
        argument => Ok(argument),
    }
}

fn json(argument: Argument) -> Value {
    match argument {
        Argument::Null(_) => Value::Null,
        Argument::Boolean(value) => Value::Bool(value),
        Argument::Integer(value) => value.into(),
        Argument::Float(value) => Number::from_f64(value).map_or(Value::Null, Value::Number),
        Argument::Text(value) => Value::String(value),
        Argument::Bytes(value) => Value::String(BASE64_STANDARD.encode(value)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use unanimity_proto::v1::value::Kind;

    use super::*;

    fn operations(text: &str) -> Result<Operations, CatalogError> {
        Operations::from_config("http://h:1/api", toml::from_str(text).unwrap())
    }

    #[test]
    fn which_endpoints_are_given_tells_what_it_is_for() {
        let both = operations(
            "[a]\nprepare = '/p'\nconfirm = '/c?x=1'\ncancel = '/d'\n[b]\nexecute = '/e'\nsettle = '/s'",
        )
        .unwrap();
        assert!(both.settle_steps());
        let confirm = &both.named("a").unwrap().two_phase.as_ref().unwrap().confirm;
        assert_eq!(confirm.uri(), "http://h:1/api/c?x=1");
        assert_eq!(confirm.to_string(), "POST /c");
        let some = operations(
            "[a]\nexecute = '/e'\nsettle = '/s'\n[b]\nexecute = '/f'\n[c]\ncompensate = '/c'",
        );
        assert!(!some.unwrap().settle_steps());
        let none = operations("[a]\ncompensate = '/c'").unwrap();
        assert!(!none.settle_steps());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_key() {
        for (text, expected) in [
            ("", "at least one"),
            ("[a]", "operation a: it has no endpoint"),
            (
                "[a]\nprepare = '/p'",
                "operation a: prepare, confirm and cancel",
            ),
            (
                "[a]\ncompensate = '/c'\nsettle = '/s'",
                "operation a: settle",
            ),
            (
                "[a]\nexecute = 'hunter2'",
                "operation a: execute: expected a path",
            ),
            (
                "[a]\nexecute = '/hunter2#x'",
                "operation a: execute: expected a path",
            ),
            (
                "[a]\nexecute = '/hunter2 x'",
                "operation a: execute: expected a path",
            ),
            (
                "[a]\nexecute = \"/hunter2\\r\\nx\"",
                "operation a: execute: expected a path",
            ),
            ("[a]\nexecute = '//hunter2'", ""),
            ("['a b']\nexecute = '/e'", "operation name \"a b\""),
        ] {
            match operations(text) {
                Ok(operations) => {
                    let uri = operations.named("a").unwrap().execute.clone().unwrap().uri;
                    assert_eq!((uri.host(), expected), (Some("h"), ""), "{text}");
                }
                Err(CatalogError(refused)) => {
                    assert!(
                        !expected.is_empty() && refused.contains(expected),
                        "{text}: {refused}"
                    );
                    assert!(!refused.contains("hunter2"), "{refused}");
                }
            }
        }
    }

    #[test]
    fn values_become_json_and_what_json_lacks_is_refused() {
        let types = ["boolean", "integer", "float", "text", "bytes"];
        let parameters: Vec<String> = types
            .iter()
            .map(|name| format!("{{ name = '{name}', type = '{name}' }}"))
            .collect();
        let text = format!(
            "[a]\nexecute = '/e'\nparameters = [{}]",
            parameters.join(", ")
        );
        let operations = operations(&text).unwrap();
        let mut operation = v1::Operation {
            statement: Some(Statement::Name("a".into())),
            ..Default::default()
        };
        for (name, kind) in types.into_iter().zip([
            Kind::Boolean(true),
            Kind::Integer(i64::MIN),
            Kind::Float(0.5),
            Kind::Null(true),
            Kind::Bytes(b"\xff\x00".to_vec()),
        ]) {
            let value = v1::Value { kind: Some(kind) };
            operation.parameters.insert(name.into(), value);
        }
        let (_, values) = operations.resolve(&operation).unwrap();
        assert_eq!(
            Value::Object(values),
            serde_json::json!({"boolean": true, "integer": i64::MIN, "float": 0.5, "text": null, "bytes": "/wA="})
        );
        let nan = v1::Value {
            kind: Some(Kind::Float(f64::NAN)),
        };
        operation.parameters.insert("float".into(), nan);
        let refused = operations.resolve(&operation).unwrap_err();
        assert!(
            refused.message.contains("parameter float is no number"),
            "{refused}"
        );
    }
}
