//! What a statement is, by its text, as far as that can be told without parsing SQL.

/// Whose SQL it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// PostgreSQL: schema changes are part of a transaction, so they pass.
    Postgres,
    /// MySQL and MariaDB: schema changes commit silently, so only reading and changing rows passes.
    Mysql,
    /// SQLite: the prepare journal holds changes to rows, so only these pass.
    Sqlite,
}

/// What PostgreSQL must not be asked to do in a branch: transaction control, session state, and what breaks the protocol.
const POSTGRES_REFUSED: &[&str] = &[
    "BEGIN",
    "START",
    "COMMIT",
    "END",
    "ROLLBACK",
    "ABORT",
    "SAVEPOINT",
    "RELEASE",
    "PREPARE",
    "EXECUTE",
    "DEALLOCATE",
    "SET",
    "RESET",
    "DISCARD",
    "LISTEN",
    "UNLISTEN",
    "NOTIFY",
    "COPY",
    "DECLARE",
    "FETCH",
    "MOVE",
    "CLOSE",
    "LOAD",
    "VACUUM",
    "CHECKPOINT",
];
const MYSQL_TAKEN: &[&str] = &[
    "SELECT", "WITH", "VALUES", "TABLE", "INSERT", "REPLACE", "UPDATE", "DELETE", "CALL", "DO",
    "SHOW", "EXPLAIN", "DESCRIBE", "DESC",
];
const SQLITE_TAKEN: &[&str] = &[
    "SELECT", "WITH", "VALUES", "INSERT", "REPLACE", "UPDATE", "DELETE", "EXPLAIN",
];

impl Dialect {
    /// Refuses what has no place in a branch. This looks at the first word only (and on SQLite at the end of the statement): it catches
    /// mistakes; what a function or procedure does inside is between its author and the database, which refuses most of it.
    pub(crate) fn check(self, sql: &str) -> Result<(), String> {
        let first = first_keyword(sql, self);
        if first.is_empty() && !skip_blank(sql, self).starts_with('(') {
            return Err("it holds no statement".into());
        }
        let refused = match self {
            Self::Postgres => POSTGRES_REFUSED.contains(&first.as_str()),
            Self::Mysql => !first.is_empty() && !MYSQL_TAKEN.contains(&first.as_str()),
            Self::Sqlite => !SQLITE_TAKEN.contains(&first.as_str()),
        };
        if refused {
            return Err(format!(
                "{first} has no place in a branch: transactions, schema and session belong to the agent"
            ));
        }
        // PostgreSQL, MySQL and MariaDB refuse a second statement themselves; sqlx would run it on SQLite, a COMMIT included.
        if self == Self::Sqlite && !one_statement(sql) {
            return Err("one statement only".into());
        }
        Ok(())
    }
}

/// The first word, in upper case, after blanks and comments.
pub(crate) fn first_keyword(sql: &str, dialect: Dialect) -> String {
    let word = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
    skip_blank(sql, dialect)
        .chars()
        .take_while(word)
        .collect::<String>()
        .to_ascii_uppercase()
}

/// Whether the statement certainly counts rows that it changes, and not those that it returns.
pub(crate) fn counts_changes(sql: &str, dialect: Dialect) -> bool {
    match first_keyword(sql, dialect).as_str() {
        "SELECT" | "VALUES" | "TABLE" | "SHOW" | "EXPLAIN" | "DESCRIBE" | "DESC" | "" => false,
        "WITH" => {
            let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
            let changes = |w: &str| {
                ["insert", "update", "delete", "merge", "replace"]
                    .iter()
                    .any(|c| w.eq_ignore_ascii_case(c))
            };
            sql.split(word).any(changes)
        }
        _ => true,
    }
}

/// Whether the statement changes rows by its first word: then a count above nought proves a write.
pub(crate) fn changes_rows(sql: &str, dialect: Dialect) -> bool {
    matches!(
        first_keyword(sql, dialect).as_str(),
        "INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "MERGE"
    )
}

fn skip_blank(mut sql: &str, dialect: Dialect) -> &str {
    loop {
        sql = sql.trim_start();
        let rest = if sql.starts_with("--") || (dialect == Dialect::Mysql && sql.starts_with('#')) {
            sql.split_once('\n').map(|(_, rest)| rest)
        } else if sql.starts_with("/*!") || sql.starts_with("/*M!") {
            // MySQL and MariaDB run what stands in such a comment: it is no blank.
            return sql;
        } else if sql.starts_with("/*") {
            comment_end(sql, dialect == Dialect::Postgres).map(|end| &sql[end..])
        } else {
            return sql;
        };
        sql = rest.unwrap_or("");
    }
}

/// Where the block comment that starts the text ends; PostgreSQL's nest.
fn comment_end(sql: &str, nested: bool) -> Option<usize> {
    let (mut depth, mut at) = (1, 2);
    loop {
        let rest = sql.get(at..)?;
        let close = rest.find("*/")?;
        match rest.find("/*").filter(|open| nested && *open < close) {
            Some(open) => (depth, at) = (depth + 1, at + open + 2),
            None => (depth, at) = (depth - 1, at + close + 2),
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Whether nothing but blanks and semicolons follows the first semicolon, by SQLite's rules for strings and comments.
fn one_statement(sql: &str) -> bool {
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        rest = match c {
            '\'' | '"' | '`' => after(&rest[1..], c),
            '[' => after(&rest[1..], ']'),
            '-' if rest.starts_with("--") => after(rest, '\n'),
            '/' if rest.starts_with("/*") => {
                comment_end(rest, false).map_or("", |end| &rest[end..])
            }
            ';' => {
                let mut tail = rest;
                while tail.starts_with(';') {
                    tail = skip_blank(&tail[1..], Dialect::Sqlite);
                }
                return tail.is_empty();
            }
            _ => &rest[c.len_utf8()..],
        };
    }
    true
}

/// What follows the next `end`. A doubled quote reads as two strings in a row, which comes to the same.
fn after(text: &str, end: char) -> &str {
    text.split_once(end).map_or("", |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_control_and_second_statements_are_refused() {
        let refused = [
            (Dialect::Postgres, "commit"),
            (
                Dialect::Postgres,
                "/* a /* b */ */ -- c\n Prepare transaction 'x'",
            ),
            (Dialect::Postgres, "set search_path = x"),
            (Dialect::Mysql, "# hm\nXA END 'x'"),
            (Dialect::Mysql, "/*!50000 COMMIT */"),
            (Dialect::Mysql, "CREATE TABLE t (a int)"),
            (Dialect::Sqlite, "BEGIN"),
            (Dialect::Sqlite, "PRAGMA synchronous=OFF"),
            (Dialect::Sqlite, "UPDATE a SET b = ';'; COMMIT"),
            (Dialect::Sqlite, "UPDATE a SET b = 1; -- x\n; COMMIT"),
            (Dialect::Sqlite, " -- nothing"),
        ];
        for (dialect, sql) in refused {
            assert!(dialect.check(sql).is_err(), "{dialect:?}: {sql}");
        }
        let taken = [
            (Dialect::Postgres, "CREATE TABLE t (a int)"),
            (Dialect::Postgres, "(SELECT 1) UNION (SELECT 2)"),
            (Dialect::Mysql, "call transfer(?)"),
            (
                Dialect::Sqlite,
                "UPDATE a SET b = 'it''s; fine' WHERE [c;d] = \";\" -- ; end",
            ),
            (Dialect::Sqlite, "SELECT 1; ; /* done */"),
        ];
        for (dialect, sql) in taken {
            assert_eq!(dialect.check(sql), Ok(()), "{dialect:?}: {sql}");
        }
    }
}
