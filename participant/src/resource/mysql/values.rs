//! Values to and from MySQL and MariaDB, and what their errors mean.

use sqlx::{
    Arguments, MySql, Row, Type, TypeInfo, ValueRef,
    mysql::{MySqlArguments, MySqlDatabaseError, MySqlRow},
};
use unanimity_proto::v1::{self, AbortCode, value::Kind};

use crate::{
    operation::{Argument, ParameterType, Statement},
    resource::{Failure, is_broken, kind, refusal, statement::unbound},
};

/// Binds in the order of the placeholders.
pub(super) fn bind(statement: &Statement) -> Result<MySqlArguments, Failure> {
    let mut bound = MySqlArguments::default();
    for argument in &statement.arguments {
        match argument {
            Argument::Null(Some(ParameterType::Boolean)) => bound.add(None::<bool>),
            Argument::Null(Some(ParameterType::Integer)) => bound.add(None::<i64>),
            Argument::Null(Some(ParameterType::Float)) => bound.add(None::<f64>),
            Argument::Null(Some(ParameterType::Bytes)) => bound.add(None::<&[u8]>),
            Argument::Null(Some(ParameterType::Text) | None) => bound.add(None::<&str>),
            Argument::Boolean(value) => bound.add(*value),
            Argument::Integer(value) => bound.add(*value),
            Argument::Float(value) => bound.add(*value),
            Argument::Text(value) => bound.add(value.as_str()),
            Argument::Bytes(value) => bound.add(value.as_slice()),
        }
        .map_err(|error| unbound(statement, &error))?;
    }
    Ok(bound)
}

/// One value of a row; a type with no counterpart among ours is refused.
pub(super) fn read_value(row: &MySqlRow, index: usize) -> Result<v1::Value, String> {
    let raw = row.try_get_raw(index).map_err(|error| error.to_string())?;
    if raw.is_null() {
        return Ok(kind(Kind::Null(true)));
    }
    let info = raw.type_info().into_owned();
    let bytes: Vec<u8> = row
        .try_get_unchecked(index)
        .map_err(|error| error.to_string())?;
    let value = match info.name() {
        // TINYINT(1) is called BOOLEAN, and holds any small number.
        "BOOLEAN" | "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" => {
            signed(&bytes).map(Kind::Integer)
        }
        "TINYINT UNSIGNED" | "SMALLINT UNSIGNED" | "MEDIUMINT UNSIGNED" | "INT UNSIGNED"
        | "BIGINT UNSIGNED" | "YEAR" => unsigned(&bytes).map(|value| {
            i64::try_from(value).map_or_else(|_| Kind::Text(value.to_string()), Kind::Integer)
        }),
        "FLOAT" => fixed(&bytes).map(|bytes| Kind::Float(f32::from_le_bytes(bytes).into())),
        "DOUBLE" => fixed(&bytes).map(|bytes| Kind::Float(f64::from_le_bytes(bytes))),
        "DATE" => date(&bytes, false).map(Kind::Text),
        "DATETIME" | "TIMESTAMP" => date(&bytes, true).map(Kind::Text),
        "TIME" => time(&bytes).map(Kind::Text),
        "BIT" => Some(Kind::Bytes(bytes)),
        "DECIMAL" | "JSON" | "ENUM" | "SET" => text(bytes),
        _ if <str as Type<MySql>>::compatible(&info) => text(bytes),
        "BINARY" | "VARBINARY" | "TINYBLOB" | "BLOB" | "MEDIUMBLOB" | "LONGBLOB" => {
            Some(Kind::Bytes(bytes))
        }
        _ => None,
    };
    value.map(kind).ok_or_else(|| {
        format!(
            "type {} has no counterpart here; cast it to CHAR",
            info.name()
        )
    })
}

fn fixed<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

fn text(bytes: Vec<u8>) -> Option<Kind> {
    String::from_utf8(bytes).ok().map(Kind::Text)
}

/// Little endian, of 1, 2, 4 or 8 bytes.
fn unsigned(bytes: &[u8]) -> Option<u64> {
    matches!(bytes.len(), 1 | 2 | 4 | 8).then(|| {
        bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    })
}

fn signed(bytes: &[u8]) -> Option<i64> {
    let unused = 64_usize.checked_sub(bytes.len() * 8)?;
    unsigned(bytes).map(|value| (value << unused).cast_signed() >> unused)
}

/// The binary form: a length, then year, month, day, and as far as they are not nought hour, minute, second, and microseconds.
fn date(bytes: &[u8], clock: bool) -> Option<String> {
    let (length, rest) = bytes.split_first()?;
    let at = |index: usize| rest.get(index).copied().unwrap_or(0);
    if usize::from(*length) != rest.len() {
        return None;
    }
    let day = format!(
        "{:04}-{:02}-{:02}",
        u16::from_le_bytes([at(0), at(1)]),
        at(2),
        at(3)
    );
    if !clock {
        return Some(day);
    }
    let micros = u32::from_le_bytes([at(7), at(8), at(9), at(10)]);
    Some(format!(
        "{day} {:02}:{:02}:{:02}{}",
        at(4),
        at(5),
        at(6),
        fraction(micros)
    ))
}

/// The binary form: a length, a sign, days, hours, minutes, seconds, and microseconds.
fn time(bytes: &[u8]) -> Option<String> {
    let (length, rest) = bytes.split_first()?;
    let at = |index: usize| rest.get(index).copied().unwrap_or(0);
    if usize::from(*length) != rest.len() {
        return None;
    }
    let sign = if at(0) == 1 { "-" } else { "" };
    let hours = u32::from_le_bytes([at(1), at(2), at(3), at(4)]) * 24 + u32::from(at(5));
    let micros = u32::from_le_bytes([at(8), at(9), at(10), at(11)]);
    Some(format!(
        "{sign}{hours:02}:{:02}:{:02}{}",
        at(6),
        at(7),
        fraction(micros)
    ))
}

fn fraction(micros: u32) -> String {
    if micros == 0 {
        String::new()
    } else {
        format!(".{micros:06}").trim_end_matches('0').to_owned()
    }
}

/// The number of a database's answer; 0 where the error is none.
pub(super) fn number(error: &sqlx::Error) -> u16 {
    let answer = error
        .as_database_error()
        .and_then(|answer| answer.try_downcast_ref::<MySqlDatabaseError>());
    answer.map_or(0, MySqlDatabaseError::number)
}

/// The session is gone: the connection broke, or the server ended it.
pub(super) fn is_dead(error: &sqlx::Error) -> bool {
    is_broken(error)
        || matches!(
            number(error),
            1053 | 1077 | 1079 | 1080 | 1152..=1161 | 1184 | 1927 | 2006 | 2013 | 4031
        )
}

/// What an error in a branch comes to.
pub(super) fn failure(what: &str, error: &sqlx::Error) -> Failure {
    Failure {
        refusal: refusal(code(error), format!("{what}: {error}")),
        broken: is_dead(error),
    }
}

fn code(error: &sqlx::Error) -> AbortCode {
    match number(error) {
        0 => AbortCode::ParticipantUnavailable,
        // Deadlock; the row changed since the snapshot; certification and rollback-only.
        1213 | 1020 | 3101 | 1402 | 1613 | 1614 => AbortCode::Conflict,
        1205 | 1317 | 1969 | 3024 | 3572 => AbortCode::Timeout,
        // Keys, foreign keys, CHECK, SIGNAL, NULL, and what doesn't fit its column.
        1022 | 1048 | 1062 | 1169 | 1216 | 1217 | 1451 | 1452 | 1557 | 1586 | 1761 | 1762 => {
            AbortCode::Refused
        }
        3819 | 4025 | 1644 | 1364 | 1264 | 1265 | 1366 | 1406 | 1292 | 1365 | 1690 | 1369 => {
            AbortCode::Refused
        }
        // Syntax, unknown names, wrong counts, and what has no place in a branch.
        1046 | 1049 | 1051 | 1052 | 1054 | 1058 | 1064 | 1065 | 1109 | 1136 | 1146 | 1149
        | 1166 | 1210 => AbortCode::InvalidOperation,
        1222 | 1241 | 1242 | 1295 | 1305 | 1318 | 1321 | 1327 | 1399 | 1400 => {
            AbortCode::InvalidOperation
        }
        1040 | 1129 | 1203 | 1226 | 1290 | 1836 => AbortCode::ParticipantUnavailable,
        _ if is_dead(error) => AbortCode::ParticipantUnavailable,
        _ => AbortCode::ParticipantFailure,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use super::*;

    #[test]
    fn binary_values_read_as_mysql_writes_them() {
        assert_eq!(signed(&[0xFF]), Some(-1));
        assert_eq!(signed(&[0, 0x80]), Some(-32_768));
        assert_eq!(signed(&5_i64.to_le_bytes()), Some(5));
        assert_eq!(unsigned(&u64::MAX.to_le_bytes()), Some(u64::MAX));
        assert_eq!(
            date(&[4, 0xE8, 7, 2, 29], false).as_deref(),
            Some("2024-02-29")
        );
        assert_eq!(
            date(&[7, 0xE8, 7, 2, 29, 1, 2, 3], true).as_deref(),
            Some("2024-02-29 01:02:03")
        );
        assert_eq!(date(&[0], true).as_deref(), Some("0000-00-00 00:00:00"));
        assert_eq!(
            time(&[12, 1, 1, 0, 0, 0, 2, 3, 4, 0x20, 0xA1, 7, 0]).as_deref(),
            Some("-26:03:04.5")
        );
    }
}
