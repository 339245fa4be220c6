//! Values given to, and returned by, operations.

use unanimity_proto::v1;

/// A value. Exact decimals travel as text; the statement casts them.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// SQL NULL.
    Null,
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
    /// In a saga: a value that is known only when it runs; from [`Value::reference`].
    Reference(String),
}

impl Value {
    /// In a saga's steps: a value out of the result of an earlier step, as `<step>.<path>`, or the saga's id, as `transaction.id`. The path
    /// names fields of objects, and positions in lists from 0: `order.rows.0.id` is the column `id` of the first row that `order` returned.
    pub fn reference(path: impl Into<String>) -> Self {
        Self::Reference(path.into())
    }

    /// The kind, in words, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean(_) => "boolean",
            Self::Integer(_) => "integer",
            Self::Float(_) => "float",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Reference(_) => "reference",
        }
    }

    /// `None` where the kind is unset or unknown.
    pub(crate) fn from_wire(value: v1::Value) -> Option<Self> {
        use v1::value::Kind;
        Some(match value.kind? {
            Kind::Null(_) => Self::Null,
            Kind::Boolean(value) => Self::Boolean(value),
            Kind::Integer(value) => Self::Integer(value),
            Kind::Float(value) => Self::Float(value),
            Kind::Text(value) => Self::Text(value),
            Kind::Bytes(value) => Self::Bytes(value),
            Kind::Reference(_) => return None, // Only asked with, never answered.
        })
    }
}

impl From<Value> for v1::Value {
    fn from(value: Value) -> Self {
        use v1::value::Kind;
        let kind = match value {
            Value::Null => Kind::Null(true),
            Value::Boolean(value) => Kind::Boolean(value),
            Value::Integer(value) => Kind::Integer(value),
            Value::Float(value) => Kind::Float(value),
            Value::Text(value) => Kind::Text(value),
            Value::Bytes(value) => Kind::Bytes(value),
            Value::Reference(path) => Kind::Reference(path),
        };
        Self { kind: Some(kind) }
    }
}

macro_rules! value_from {
    ($($source:ty => |$value:ident| $made:expr),+ $(,)?) => {
        $(impl From<$source> for Value {
            fn from($value: $source) -> Self {
                $made
            }
        })+
    };
}

value_from! {
    bool => |value| Self::Boolean(value),
    i16 => |value| Self::Integer(value.into()),
    i32 => |value| Self::Integer(value.into()),
    u32 => |value| Self::Integer(value.into()),
    i64 => |value| Self::Integer(value),
    f64 => |value| Self::Float(value),
    &str => |value| Self::Text(value.to_owned()),
    &String => |value| Self::Text(value.clone()),
    String => |value| Self::Text(value),
    &[u8] => |value| Self::Bytes(value.to_vec()),
    Vec<u8> => |value| Self::Bytes(value),
}

/// `None` is NULL.
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_survives_the_wire() {
        let values = [
            Value::from(None::<i64>),
            true.into(),
            (-7).into(),
            i64::MIN.into(),
            0.5.into(),
            "text".into(),
            vec![0, 255].into(),
            Some("x").into(),
        ];
        for value in values {
            assert_eq!(Value::from_wire(value.clone().into()), Some(value));
        }
    }

    #[test]
    fn a_reference_is_asked_with_and_never_answered() {
        let wire = v1::Value::from(Value::reference("order.id"));
        assert_eq!(
            wire.kind,
            Some(v1::value::Kind::Reference("order.id".into()))
        );
        assert_eq!(Value::from_wire(wire), None);
    }

    #[test]
    fn an_unset_kind_is_not_null() {
        assert_eq!(Value::from_wire(v1::Value { kind: None }), None);
    }
}
