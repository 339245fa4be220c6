//! What the three drivers have in common where one statement runs.

use futures_util::{Stream, TryStreamExt};
use sqlx::{Column, Either, Row};
use unanimity_proto::v1::{self, AbortCode};

use crate::{
    operation::{Dialect, Statement, counts_changes},
    participant::Refusal,
};

use super::{Failure, refusal};

/// Rows of one operation together come to at most this: they travel in one gRPC message.
const RESULT_BYTES_MAX: usize = 3 << 20;

/// What one statement did.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    /// Columns and rows, where they were asked for, and the count of changed rows.
    pub(crate) result: v1::OperationResult,
    /// How many rows came back.
    pub(crate) returned: u64,
    /// What the rows kept so far come to.
    bytes: usize,
}

impl Ran {
    /// The count that an operation's expectation is about: rows changed, or returned.
    pub(crate) fn rows(&self) -> u64 {
        self.returned.max(self.result.affected_rows)
    }

    /// Adds a row, refusing more than one message can carry.
    fn keep<R: Row>(&mut self, row: &R, label: &str, read: ReadValue<R>) -> Result<(), Refusal> {
        if self.returned == 1 {
            let names = row.columns().iter().map(|column| column.name().to_owned());
            self.result.columns = names.collect();
        }
        let row = v1::Row {
            values: values(row, label, read)?,
        };
        self.bytes += prost::Message::encoded_len(&row);
        if self.bytes > RESULT_BYTES_MAX {
            let message =
                format!("operation {label} returned more than {RESULT_BYTES_MAX} bytes of rows");
            return Err(refusal(AbortCode::InvalidOperation, message));
        }
        self.result.rows.push(row);
        Ok(())
    }
}

/// Reads one value of a row, or says why it can't be had.
type ReadValue<R> = fn(&R, usize) -> Result<v1::Value, String>;

/// The row's values; one with no counterpart among ours is refused by its column's name.
fn values<R: Row>(row: &R, label: &str, read: ReadValue<R>) -> Result<Vec<v1::Value>, Refusal> {
    (0..row.len())
        .map(|index| {
            read(row, index).map_err(|problem| {
                let column = row.columns()[index].name();
                let message = format!("operation {label}: column {column}: {problem}");
                refusal(AbortCode::InvalidOperation, message)
            })
        })
        .collect()
}

/// Takes in all that a statement answers: counts of changed rows, and rows, which are kept where `keep`.
pub(crate) async fn collect<R: Row>(
    statement: &Statement,
    dialect: Dialect,
    keep: bool,
    mut answers: impl Stream<Item = Result<Either<u64, R>, Failure>> + Unpin,
    read: ReadValue<R>,
) -> Result<Ran, Failure> {
    let counts = counts_changes(&statement.sql, dialect);
    let mut ran = Ran::default();
    while let Some(answer) = answers.try_next().await? {
        match answer {
            Either::Left(changed) if counts => ran.result.affected_rows += changed,
            Either::Left(_) => {}
            Either::Right(row) => {
                ran.returned += 1;
                if keep {
                    ran.keep(&row, &statement.label, read)?;
                }
            }
        }
    }
    Ok(ran)
}

/// Refuses a wrong count of values, for the drivers that don't do so in time.
pub(crate) fn check_count<T>(
    statement: &Statement,
    parameters: Option<Either<&[T], usize>>,
) -> Result<(), Refusal> {
    let given = statement.arguments.len();
    match parameters {
        Some(Either::Right(wanted)) if wanted != given => Err(refusal(
            AbortCode::InvalidOperation,
            format!(
                "operation {}: the statement takes {wanted} values, {given} are given",
                statement.label
            ),
        )),
        _ => Ok(()),
    }
}

/// The failure to bind a value.
pub(crate) fn unbound(statement: &Statement, error: &sqlx::error::BoxDynError) -> Failure {
    let message = format!("operation {}: {error}", statement.label);
    refusal(AbortCode::InvalidOperation, message).into()
}
