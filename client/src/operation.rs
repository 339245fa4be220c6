//! One piece of work for a participant.

use std::collections::HashMap;

use unanimity_proto::v1;

use crate::Value;

/// A named operation with its parameters, or SQL text with its arguments.
#[derive(Clone, Debug)]
pub struct Operation {
    statement: v1::operation::Statement,
    parameters: HashMap<String, v1::Value>,
    arguments: Vec<v1::Value>,
}

impl Operation {
    /// An operation that the participant's configuration, or the service, defines. Give it its parameters by [`Self::with`].
    pub fn named(name: impl Into<String>) -> Self {
        Self::new(v1::operation::Statement::Name(name.into()))
    }

    /// SQL text, which only a participant that allows it takes. Give it its arguments by [`Self::bind`], in their order.
    pub fn sql(text: impl Into<String>) -> Self {
        Self::new(v1::operation::Statement::Sql(text.into()))
    }

    fn new(statement: v1::operation::Statement) -> Self {
        Self {
            statement,
            parameters: HashMap::new(),
            arguments: Vec::new(),
        }
    }

    /// A parameter of a named operation. The last one of a name wins.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.parameters.insert(name.into(), value.into().into());
        self
    }

    /// The next argument of SQL text.
    #[must_use]
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.arguments.push(value.into().into());
        self
    }
}

impl From<Operation> for v1::Operation {
    fn from(operation: Operation) -> Self {
        Self {
            statement: Some(operation.statement),
            parameters: operation.parameters,
            arguments: operation.arguments,
        }
    }
}
