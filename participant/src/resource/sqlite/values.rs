//! Values to and from SQLite, and what its errors mean.

use sqlx::{
    Arguments, Column, Decode, Row, Sqlite, TypeInfo, ValueRef,
    sqlite::{SqliteArguments, SqliteRow, SqliteValueRef},
};
use unanimity_proto::v1::{self, AbortCode, value::Kind};

use crate::{
    operation::{Argument, Statement},
    resource::{Failure, is_broken, kind, refusal},
};

/// Binds in the order of the placeholders.
pub(super) fn bind(statement: &Statement) -> Result<SqliteArguments, Failure> {
    let mut bound = SqliteArguments::default();
    for argument in &statement.arguments {
        match argument {
            Argument::Null(_) => bound.add(None::<i64>),
            Argument::Boolean(value) => bound.add(*value),
            Argument::Integer(value) => bound.add(*value),
            Argument::Float(value) => bound.add(*value),
            Argument::Text(value) => bound.add(value.clone()),
            Argument::Bytes(value) => bound.add(value.clone()),
        }
        .map_err(|error| refusal(AbortCode::InvalidOperation, format!("operation {}: {error}", statement.label)))?;
    }
    Ok(bound)
}

pub(super) fn columns(row: &SqliteRow) -> Vec<String> {
    row.columns().iter().map(|column| column.name().to_owned()).collect()
}

/// The row's values, by the type that each value has: a column's declared type binds nobody.
pub(super) fn read(row: &SqliteRow, label: &str) -> Result<Vec<v1::Value>, Failure> {
    (0..row.len())
        .map(|index| {
            read_value(row, index).map_err(|problem| {
                let column = row.columns()[index].name();
                let message = format!("operation {label}: column {column}: {problem}");
                refusal(AbortCode::InvalidOperation, message).into()
            })
        })
        .collect()
}

fn read_value(row: &SqliteRow, index: usize) -> Result<v1::Value, String> {
    let raw = row.try_get_raw(index).map_err(|error| error.to_string())?;
    if raw.is_null() {
        return Ok(kind(Kind::Null(true)));
    }
    let name = raw.type_info().name().to_owned();
    let value = match name.as_str() {
        "INTEGER" => Kind::Integer(decode(raw)?),
        "REAL" => Kind::Float(decode(raw)?),
        "TEXT" => Kind::Text(decode(raw)?),
        "BLOB" => Kind::Bytes(decode(raw)?),
        other => return Err(format!("{other} has no counterpart")),
    };
    Ok(kind(value))
}

fn decode<'r, T: Decode<'r, Sqlite>>(raw: SqliteValueRef<'r>) -> Result<T, String> {
    T::decode(raw).map_err(|error| error.to_string())
}

/// The extended result code of SQLite's answer.
pub(super) fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// A key, primary or unique, is taken.
pub(super) fn is_taken(error: &sqlx::Error) -> bool {
    // CONSTRAINT_PRIMARYKEY, CONSTRAINT_UNIQUE, CONSTRAINT_ROWID.
    matches!(code(error), Some(1555 | 2067 | 2579))
}

/// What an error in a branch comes to.
pub(super) fn failure(what: &str, error: &sqlx::Error) -> Failure {
    let Some(extended) = code(error) else {
        let code = if is_broken(error) { AbortCode::ParticipantUnavailable } else { AbortCode::ParticipantFailure };
        return Failure { refusal: refusal(code, format!("{what}: {error}")), broken: is_broken(error) };
    };
    let text = error.as_database_error().map(|answer| answer.message().to_owned()).unwrap_or_default();
    let abort = match extended & 0xff {
        // CONSTRAINT, TOOBIG.
        19 | 18 => AbortCode::Refused,
        // BUSY, LOCKED, INTERRUPT: a statement is interrupted when its time is over.
        5 | 6 | 9 => AbortCode::Timeout,
        // ERROR, MISMATCH, RANGE, AUTH.
        1 | 20 | 25 | 23 => AbortCode::InvalidOperation,
        // CANTOPEN, IOERR, FULL, NOMEM.
        14 | 10 | 13 | 7 => AbortCode::ParticipantUnavailable,
        _ => AbortCode::ParticipantFailure,
    };
    Failure { refusal: refusal(abort, format!("{what}: {text}")), broken: false }
}
