//! Values to and from SQLite, and what its errors mean.

use sqlx::{
    Arguments, Row, TypeInfo, ValueRef,
    sqlite::{SqliteArguments, SqliteRow},
};
use unanimity_proto::v1::{self, AbortCode, value::Kind};

use crate::{
    operation::{Argument, Statement},
    resource::{Failure, is_broken, kind, refusal, statement::unbound},
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
        .map_err(|error| unbound(statement, &error))?;
    }
    Ok(bound)
}

/// One value of a row, by how SQLite stores it.
pub(super) fn read_value(row: &SqliteRow, index: usize) -> Result<v1::Value, String> {
    stored_value(row, index).map_err(|error| error.to_string())
}

fn stored_value(row: &SqliteRow, index: usize) -> Result<v1::Value, sqlx::Error> {
    let raw = row.try_get_raw(index)?;
    if raw.is_null() {
        return Ok(kind(Kind::Null(true)));
    }
    let storage = raw.type_info().name().to_owned();
    Ok(kind(match storage.as_str() {
        "INTEGER" => Kind::Integer(row.try_get_unchecked(index)?),
        "REAL" => Kind::Float(row.try_get_unchecked(index)?),
        "TEXT" => Kind::Text(row.try_get_unchecked(index)?),
        _ => Kind::Bytes(row.try_get_unchecked(index)?),
    }))
}

/// The primary result code of an answer of SQLite's; 0 where the error is none.
pub(super) fn code(error: &sqlx::Error) -> i32 {
    let answer = error.as_database_error().and_then(|answer| answer.code());
    answer
        .and_then(|code| code.parse::<i32>().ok())
        .map_or(0, |extended| extended & 0xFF)
}

/// What an error in a branch comes to.
pub(super) fn failure(what: &str, error: &sqlx::Error) -> Failure {
    let code = match code(error) {
        0 => AbortCode::ParticipantUnavailable,
        // SQLITE_CONSTRAINT, SQLITE_MISMATCH
        19 | 20 => AbortCode::Refused,
        // SQLITE_BUSY, SQLITE_LOCKED, SQLITE_INTERRUPT
        5 | 6 | 9 => AbortCode::Timeout,
        // SQLITE_ERROR, SQLITE_TOOBIG, SQLITE_AUTH, SQLITE_RANGE
        1 | 18 | 23 | 25 => AbortCode::InvalidOperation,
        _ => AbortCode::ParticipantFailure,
    };
    Failure {
        refusal: refusal(code, format!("{what}: {error}")),
        broken: is_broken(error),
    }
}

/// Whether a constraint was violated.
pub(super) fn is_constraint(error: &sqlx::Error) -> bool {
    code(error) == 19
}
