//! Values to and from PostgreSQL, and what its errors mean.

use sqlx::Arguments;
use sqlx::{
    Encode, Postgres, Row, Type, TypeInfo, ValueRef,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgArguments, PgRow, PgTypeInfo, PgTypeKind, types::Oid},
};
use unanimity_proto::v1::{self, AbortCode, value::Kind};

use crate::{
    operation::{Argument, ParameterType, Statement},
    resource::{Failure, is_broken, kind, refusal, statement::unbound},
};

/// NULL whose type PostgreSQL infers.
struct UntypedNull;

impl Type<Postgres> for UntypedNull {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(0))
    }
}

impl Encode<'_, Postgres> for UntypedNull {
    fn encode_by_ref(&self, _: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Ok(IsNull::Yes)
    }
}

/// Binds in the order of the placeholders. Types follow the declaration, so that a cached statement always fits.
pub(super) fn bind(statement: &Statement) -> Result<PgArguments, Failure> {
    let mut bound = PgArguments::default();
    for argument in &statement.arguments {
        match argument {
            Argument::Null(None) => bound.add(UntypedNull),
            Argument::Null(Some(ParameterType::Boolean)) => bound.add(None::<bool>),
            Argument::Null(Some(ParameterType::Integer)) => bound.add(None::<i64>),
            Argument::Null(Some(ParameterType::Float)) => bound.add(None::<f64>),
            Argument::Null(Some(ParameterType::Text)) => bound.add(None::<&str>),
            Argument::Null(Some(ParameterType::Bytes)) => bound.add(None::<&[u8]>),
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
pub(super) fn read_value(row: &PgRow, index: usize) -> Result<v1::Value, String> {
    let raw = row.try_get_raw(index).map_err(|error| error.to_string())?;
    if raw.is_null() {
        return Ok(kind(Kind::Null(true)));
    }
    let info = raw.type_info();
    let bytes = raw.as_bytes().map_err(|error| error.to_string())?;
    let value = match (info.name(), info.kind()) {
        ("BOOL", _) => Some(Kind::Boolean(bytes == [1])),
        ("INT2", _) => fixed(bytes).map(|b| Kind::Integer(i16::from_be_bytes(b).into())),
        ("INT4", _) => fixed(bytes).map(|b| Kind::Integer(i32::from_be_bytes(b).into())),
        ("INT8", _) => fixed(bytes).map(|b| Kind::Integer(i64::from_be_bytes(b))),
        ("OID", _) => fixed(bytes).map(|b| Kind::Integer(u32::from_be_bytes(b).into())),
        ("FLOAT4", _) => fixed(bytes).map(|b| Kind::Float(f32::from_be_bytes(b).into())),
        ("FLOAT8", _) => fixed(bytes).map(|b| Kind::Float(f64::from_be_bytes(b))),
        ("BYTEA", _) => Some(Kind::Bytes(bytes.to_vec())),
        ("NUMERIC", _) => numeric(bytes).map(Kind::Text),
        ("DATE", _) => fixed(bytes).map(|b| Kind::Text(date(i32::from_be_bytes(b).into()))),
        ("TIME", _) => fixed(bytes).map(|b| Kind::Text(time(i64::from_be_bytes(b)))),
        ("TIMESTAMP", _) => fixed(bytes).map(|b| Kind::Text(timestamp(i64::from_be_bytes(b), ""))),
        ("TIMESTAMPTZ", _) => {
            fixed(bytes).map(|b| Kind::Text(timestamp(i64::from_be_bytes(b), "+00")))
        }
        ("UUID", _) => fixed(bytes).map(|b| Kind::Text(uuid::Uuid::from_bytes(b).to_string())),
        ("JSONB", _) => bytes.strip_prefix(&[1]).and_then(text),
        ("VOID", _) => Some(Kind::Null(true)),
        ("TEXT" | "VARCHAR" | "CHAR" | "NAME" | "JSON" | "\"CHAR\"" | "UNKNOWN", _)
        | (_, PgTypeKind::Enum(_)) => text(bytes),
        _ => None,
    };
    value.map(kind).ok_or_else(|| {
        format!(
            "type {} has no counterpart here; cast it to text",
            info.name()
        )
    })
}

fn fixed<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

fn text(bytes: &[u8]) -> Option<Kind> {
    std::str::from_utf8(bytes)
        .ok()
        .map(|text| Kind::Text(text.to_owned()))
}

/// A numeric's binary form: digits to base 10 000, their count, the weight of the first, sign, and decimal places to show.
fn numeric(bytes: &[u8]) -> Option<String> {
    let words: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
        .collect();
    let [count, weight, sign, scale, ref digits @ ..] = words[..] else {
        return None;
    };
    match sign {
        0xC000 => return Some("NaN".into()),
        0xD000 => return Some("Infinity".into()),
        0xF000 => return Some("-Infinity".into()),
        _ => {}
    }
    if digits.len() != usize::from(count) {
        return None;
    }
    let weight = i32::from(weight.cast_signed());
    let digit = |position: i32| {
        usize::try_from(position)
            .ok()
            .and_then(|at| digits.get(at))
            .copied()
            .unwrap_or(0)
    };
    let mut shown = if sign == 0x4000 {
        String::from("-")
    } else {
        String::new()
    };
    if weight < 0 {
        shown.push('0');
    } else {
        shown += &digit(0).to_string();
        (1..=weight).for_each(|position| shown += &format!("{:04}", digit(position)));
    }
    if scale > 0 {
        let groups = i32::from(scale.div_ceil(4));
        let fraction: String = (1..=groups)
            .map(|place| format!("{:04}", digit(weight + place)))
            .collect();
        shown.push('.');
        shown += &fraction[..usize::from(scale)];
    }
    Some(shown)
}

/// Days since 2000-01-01, as PostgreSQL's ISO style shows them.
fn date(days: i64) -> String {
    match days {
        d if d == i64::from(i32::MAX) => return "infinity".into(),
        d if d == i64::from(i32::MIN) => return "-infinity".into(),
        _ => {}
    }
    // Howard Hinnant's civil_from_days, over eras of 400 years that begin on 1 March; 2000-01-01 is day 730 425 of that count.
    let z = days + 730_425;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    if year > 0 {
        format!("{year:04}-{month:02}-{day:02}")
    } else {
        format!("{:04}-{month:02}-{day:02} BC", 1 - year)
    }
}

fn time(micros: i64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let clock = format!(
        "{:02}:{:02}:{:02}",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    );
    if fraction == 0 {
        clock
    } else {
        format!("{clock}.{fraction:06}")
            .trim_end_matches('0')
            .to_owned()
    }
}

fn timestamp(micros: i64, zone: &str) -> String {
    const DAY: i64 = 86_400_000_000;
    match micros {
        i64::MAX => "infinity".into(),
        i64::MIN => "-infinity".into(),
        _ => {
            let date = date(micros.div_euclid(DAY));
            let clock = time(micros.rem_euclid(DAY));
            match date.strip_suffix(" BC") {
                Some(date) => format!("{date} {clock}{zone} BC"),
                None => format!("{date} {clock}{zone}"),
            }
        }
    }
}

/// The SQLSTATE of a database's answer; empty where the error is none.
pub(super) fn state(error: &sqlx::Error) -> String {
    error
        .as_database_error()
        .and_then(|answer| answer.code())
        .map(Into::into)
        .unwrap_or_default()
}

/// The session is gone: the connection broke, or the server ended it.
pub(super) fn is_dead(error: &sqlx::Error) -> bool {
    let state = state(error);
    is_broken(error)
        || state.starts_with("57P")
        || (state.starts_with("08") && state != "08P01")
        || state == "25P03"
}

/// What an error in a branch comes to.
pub(super) fn failure(what: &str, error: &sqlx::Error) -> Failure {
    let state = state(error);
    // A cached statement that no longer fits its tables stays in the driver's cache: the connection must go.
    let stale = state == "0A000" || state == "26000";
    Failure {
        refusal: refusal(code(error, &state), format!("{what}: {error}")),
        broken: stale || is_dead(error),
    }
}

fn code(error: &sqlx::Error, state: &str) -> AbortCode {
    if error.as_database_error().is_none() {
        return AbortCode::ParticipantUnavailable;
    }
    match (state, state.get(..2).unwrap_or_default()) {
        ("55P03" | "57014" | "25P03" | "25P04", _) => AbortCode::Timeout,
        ("08P01" | "22P02" | "22P03" | "22021" | "0A000" | "2D000", _) => {
            AbortCode::InvalidOperation
        }
        ("42501", _) => AbortCode::ParticipantFailure,
        (_, "40") => AbortCode::Conflict,
        (_, "22" | "23" | "44" | "P0" | "21" | "09") => AbortCode::Refused,
        (_, "42" | "26" | "34") => AbortCode::InvalidOperation,
        (_, "08" | "53") => AbortCode::ParticipantUnavailable,
        (_, "57") => AbortCode::ParticipantUnavailable,
        _ => AbortCode::ParticipantFailure,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use super::*;

    #[test]
    fn numerics_read_as_postgresql_writes_them() {
        let encode = |words: &[u16]| {
            words
                .iter()
                .flat_map(|word| word.to_be_bytes())
                .collect::<Vec<u8>>()
        };
        let cases = [
            (vec![0, 0, 0, 0], "0"),
            (vec![0, 0, 0, 2], "0.00"),
            (vec![2, 0, 0x4000, 2, 12, 3400], "-12.34"),
            (vec![1, 1, 0, 0, 1], "10000"),
            (vec![1, 0xFFFE, 0, 8, 5], "0.00000005"),
            (vec![3, 1, 0, 1, 1, 2345, 6000], "12345.6"),
            (vec![0, 0, 0xC000, 0], "NaN"),
        ];
        for (words, expected) in cases {
            assert_eq!(
                numeric(&encode(&words)).as_deref(),
                Some(expected),
                "{words:?}"
            );
        }
    }

    #[test]
    fn timestamps_read_as_postgresql_writes_them() {
        assert_eq!(date(0), "2000-01-01");
        assert_eq!(date(-1), "1999-12-31");
        assert_eq!(date(59), "2000-02-29");
        assert_eq!(date(-730_119), "0001-01-01");
        assert_eq!(date(-730_120), "0001-12-31 BC");
        assert_eq!(timestamp(1_500_000, "+00"), "2000-01-01 00:00:01.5+00");
        assert_eq!(timestamp(-1, ""), "1999-12-31 23:59:59.999999");
    }
}
