//! What goes to stdout: a table for people, or JSON of a stable shape for programs.

use std::io::{self, ErrorKind, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::exit::{Exit, Failure};

/// How to print data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: fields may be added, and none is renamed or removed.
    Json,
}

/// What can be shown either way.
pub(crate) trait Show: Serialize {
    /// For people, without a final newline.
    fn text(&self) -> String;
}

pub(crate) fn print(format: Format, data: &impl Show) -> Result<(), Failure> {
    line(&match format {
        Format::Table => data.text(),
        Format::Json => serde_json::to_string_pretty(data)
            .map_err(|error| Failure::new(Exit::Internal, error))?,
    })
}

/// One line, or more. A reader that has seen enough, like `head`, is no failure.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::new(
            Exit::Internal,
            format!("could not write to stdout: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Columns without lines and colours, so that a copy of it, or `awk`, gets words.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header)
        .add_rows(rows.into_iter().map(|row| row.map(one_line)));
    table
        .trim_fmt()
        .lines()
        .map(|line| line.trim().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Names before values, one pair to a line.
pub(crate) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().collect();
    let width = pairs
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    let lines: Vec<_> = pairs
        .into_iter()
        .map(|(name, value)| format!("{name:width$}  {}", one_line(value)))
        .collect();
    lines.join("\n")
}

/// Text of others can't break a line, nor talk to the terminal.
fn one_line(text: String) -> String {
    if text.is_empty() {
        return "-".into();
    }
    text.chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}

/// `TRANSACTION_STATE_COMMITTED` as `committed`.
pub(crate) fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix)
        .unwrap_or(name)
        .to_ascii_lowercase()
}

pub(crate) fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_words_in_columns() {
        let shown = table(
            ["NAME", "STATE"],
            [
                ["a".into(), String::new()],
                ["long".into(), "x\ny\u{1b}[31m".into()],
            ],
        );
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 3, "{shown}");
        assert!(
            lines[1].starts_with('a') && lines[1].ends_with('-'),
            "{shown}"
        );
        assert!(!shown.contains('\u{1b}'));
    }
}
