//! What an operation gave back.

use std::{slice, sync::Arc};

use unanimity_proto::v1;

use crate::Value;

/// The rows of one operation, and how many rows it changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    columns: Arc<[String]>,
    rows: Vec<Row>,
    affected: u64,
}

impl Rows {
    /// How many rows the operation changed.
    pub fn affected(&self) -> u64 {
        self.affected
    }

    /// The names of the columns; empty where no rows can come back.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// How many rows came back.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no row came back.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows, in order.
    pub fn iter(&self) -> slice::Iter<'_, Row> {
        self.rows.iter()
    }

    /// The first row.
    pub fn first(&self) -> Option<&Row> {
        self.rows.first()
    }

    /// `None` where a value or a row is not of the protocol's form.
    pub(crate) fn from_wire(result: v1::OperationResult) -> Option<Self> {
        let columns: Arc<[String]> = result.columns.into();
        let rows = result.rows.into_iter().map(|row| {
            let values: Vec<Value> = row
                .values
                .into_iter()
                .map(Value::from_wire)
                .collect::<Option<_>>()?;
            (values.len() == columns.len()).then(|| Row {
                columns: Arc::clone(&columns),
                values,
            })
        });
        Some(Self {
            rows: rows.collect::<Option<_>>()?,
            columns,
            affected: result.affected_rows,
        })
    }
}

impl<'a> IntoIterator for &'a Rows {
    type Item = &'a Row;
    type IntoIter = slice::Iter<'a, Row>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for Rows {
    type Item = Row;
    type IntoIter = std::vec::IntoIter<Row>;

    fn into_iter(self) -> Self::IntoIter {
        self.rows.into_iter()
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    columns: Arc<[String]>,
    values: Vec<Value>,
}

impl Row {
    /// The value of a column, converted. NULL converts to `Option` only.
    ///
    /// # Errors
    /// [`RowError::NoColumn`], or [`RowError::Type`] where the value is not of that type or doesn't fit it.
    pub fn get<'a, T: FromValue<'a>>(&'a self, column: &str) -> Result<T, RowError> {
        let value = self
            .value(column)
            .ok_or_else(|| RowError::NoColumn(column.to_owned()))?;
        T::from_value(value).ok_or_else(|| RowError::Type {
            column: column.to_owned(),
            found: value.kind(),
            wanted: std::any::type_name::<T>(),
        })
    }

    /// The value of a column as it came.
    pub fn value(&self, column: &str) -> Option<&Value> {
        let index = self.columns.iter().position(|name| name == column)?;
        self.values.get(index)
    }

    /// All values, in the order of the columns.
    pub fn values(&self) -> &[Value] {
        &self.values
    }
}

/// Why a column could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// No such column.
    #[error("the row has no column {0:?}")]
    NoColumn(String),
    /// The value is not of that type.
    #[error("column {column:?} holds {found}, which is no {wanted}")]
    Type {
        /// Which column.
        column: String,
        /// What it holds.
        found: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
}

/// A type that a column can be read as.
pub trait FromValue<'a>: Sized {
    /// `None` where the value is of another type or doesn't fit.
    fn from_value(value: &'a Value) -> Option<Self>;
}

macro_rules! from_value {
    ($($target:ty: $pattern:pat => $made:expr),+ $(,)?) => {
        $(impl<'a> FromValue<'a> for $target {
            fn from_value(value: &'a Value) -> Option<Self> {
                match value {
                    $pattern => $made,
                    _ => None,
                }
            }
        })+
    };
}

from_value! {
    bool: Value::Boolean(value) => Some(*value),
    i64: Value::Integer(value) => Some(*value),
    i32: Value::Integer(value) => (*value).try_into().ok(),
    u64: Value::Integer(value) => (*value).try_into().ok(),
    u32: Value::Integer(value) => (*value).try_into().ok(),
    f64: Value::Float(value) => Some(*value),
    &'a str: Value::Text(value) => Some(value),
    String: Value::Text(value) => Some(value.clone()),
    &'a [u8]: Value::Bytes(value) => Some(value),
    Vec<u8>: Value::Bytes(value) => Some(value.clone()),
}

impl<'a> FromValue<'a> for &'a Value {
    fn from_value(value: &'a Value) -> Option<Self> {
        Some(value)
    }
}

impl<'a, T: FromValue<'a>> FromValue<'a> for Option<T> {
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(columns: &[&str], values: Vec<v1::Value>) -> Option<Rows> {
        Rows::from_wire(v1::OperationResult {
            columns: columns.iter().map(|&name| name.to_owned()).collect(),
            rows: vec![v1::Row { values }],
            affected_rows: 3,
        })
    }

    #[test]
    fn columns_are_read_by_name_and_type() {
        let values = ["a".into(), Value::Integer(1 << 40), Value::Null];
        let rows =
            rows(&["name", "balance", "note"], values.map(Into::into).into()).expect("well formed");
        let row = rows.first().expect("a row");
        assert_eq!(row.get("name"), Ok("a"));
        assert_eq!(row.get("balance"), Ok(1_i64 << 40));
        assert_eq!(row.get("note"), Ok(None::<String>));
        assert_eq!(row.get("name"), Ok(Some("a".to_owned())));
        assert_eq!(rows.affected(), 3);
        assert_eq!(
            row.get::<i64>("absent"),
            Err(RowError::NoColumn("absent".into()))
        );
        for wrong in [
            row.get::<i32>("balance").err(),
            row.get::<bool>("name").err(),
            row.get::<&str>("note").err(),
        ] {
            assert!(matches!(wrong, Some(RowError::Type { .. })), "{wrong:?}");
        }
    }

    #[test]
    fn a_malformed_row_is_refused() {
        assert_eq!(rows(&["a", "b"], vec![Value::Null.into()]), None);
        assert_eq!(rows(&["a"], vec![v1::Value { kind: None }]), None);
    }
}
