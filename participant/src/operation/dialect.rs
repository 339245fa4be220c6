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
    /// Refuses what has no place in a branch. This looks at the first word only (and on SQLite for the end of the statement): it catches
    /// mistakes; what a function or procedure does inside is between its author and the database, which refuses most of it.
    pub(crate) fn check(self, sql: &str) -> Result<(), String> {
        // sqlx would ask SQLite for the statement after it for ever.
        if sql.contains('\0') {
            return Err("it holds a zero byte".into());
        }
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
        match self {
            Self::Sqlite => one_statement(sql),
            Self::Postgres | Self::Mysql => Ok(()),
        }
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
        "WITH" => holds_word(
            sql,
            dialect,
            &["insert", "update", "delete", "merge", "replace"],
        ),
        _ => true,
    }
}

/// Whether one of the words stands there, outside of strings, quoted names and comments.
fn holds_word(sql: &str, dialect: Dialect, sought: &[&str]) -> bool {
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        rest = if let Some(after) = skip_quoted(rest, dialect) {
            after
        } else if is_word(c) {
            let after = rest.trim_start_matches(is_word);
            let word = &rest[..rest.len() - after.len()];
            if sought.iter().any(|one| word.eq_ignore_ascii_case(one)) {
                return true;
            }
            after
        } else {
            &rest[c.len_utf8()..]
        };
    }
    false
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
        } else if is_run(sql) {
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

/// Whether a name or a number goes on with it, by SQLite's rules; the others' differ in nothing that matters here.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

/// What follows the string, the quoted name or the comment that the text starts with; nothing where that has no end.
fn skip_quoted(sql: &str, dialect: Dialect) -> Option<&str> {
    let mysql = dialect == Dialect::Mysql;
    let quote = sql.chars().next()?;
    Some(match quote {
        '\'' | '"' if mysql => after_escaped(&sql[1..], quote),
        '\'' | '"' => after(&sql[1..], quote),
        '`' if dialect != Dialect::Postgres => after(&sql[1..], quote),
        '[' if dialect == Dialect::Sqlite => after(&sql[1..], ']'),
        '#' if mysql => after(sql, '\n'),
        // To MySQL `5--1` is a sum.
        '-' if sql.starts_with("--") && !(mysql && sql[2..].starts_with(|c: char| c > ' ')) => {
            after(sql, '\n')
        }
        '/' if sql.starts_with("/*") && !(mysql && is_run(sql)) => {
            comment_end(sql, dialect == Dialect::Postgres).map_or("", |end| &sql[end..])
        }
        _ => return None,
    })
}

/// MySQL and MariaDB run what stands in such a comment.
fn is_run(comment: &str) -> bool {
    comment.starts_with("/*!") || comment.starts_with("/*M!")
}

/// Takes what SQLite's own tokenizer reads as one statement: nothing but blanks and semicolons follow the first semicolon.
fn one_statement(sql: &str) -> Result<(), String> {
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        rest = match c {
            _ if let Some(after) = skip_quoted(rest, Dialect::Sqlite) => after,
            ';' if only_semicolons(rest) => return Ok(()),
            ';' => return Err("one statement only".into()),
            '$' | '@' | ':' | '#' => after_variable(rest)?,
            c if is_word(c) => rest.trim_start_matches(is_word),
            c => &rest[c.len_utf8()..],
        };
    }
    Ok(())
}

fn only_semicolons(mut sql: &str) -> bool {
    while sql.starts_with(';') {
        sql = skip_blank(&sql[1..], Dialect::Sqlite);
    }
    sql.is_empty()
}

/// What follows the variable that the text starts with. SQLite takes Tcl's `$array(index)` for one too, whatever the index holds, a quote
/// included: what looks like a string from there on would be statements.
fn after_variable(sql: &str) -> Result<&str, String> {
    let mut rest = &sql[1..];
    loop {
        rest = rest.trim_start_matches(is_word);
        match rest.strip_prefix("::") {
            Some(more) => rest = more,
            None if rest.starts_with('(') => {
                return Err("a variable may not be followed by a parenthesis".into());
            }
            None => return Ok(rest),
        }
    }
}

/// What follows the next `end`. A doubled quote reads as two strings in a row, which comes to the same.
fn after(text: &str, end: char) -> &str {
    text.split_once(end).map_or("", |(_, rest)| rest)
}

/// What follows the next `end` without a backslash before it.
fn after_escaped(text: &str, end: char) -> &str {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => _ = chars.next(),
            c if c == end => break,
            _ => {}
        }
    }
    chars.as_str()
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
            (Dialect::Sqlite, "SELECT 1;\0"),
            (Dialect::Mysql, "SELECT '\0'"),
            (Dialect::Postgres, "SELECT 1\0"),
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

    #[test]
    fn a_variable_of_sqlite_hides_no_statements() {
        for sql in [
            "SELECT $1('); COMMIT; DELETE FROM a; SELECT $1(')",
            "SELECT @a(';'), 1",
            "SELECT :a(\"), 1",
            "SELECT #1(`), 1",
            "SELECT $a::b(x)",
            "SELECT $a::(x)",
            "SELECT $::a(x)",
            "SELECT $a$b(x)",
            "SELECT $\u{e9}(x)",
            "SELECT 'a'$1(x)",
            "SELECT 1 -- a\n+$1(x)",
        ] {
            let refused = Dialect::Sqlite.check(sql);
            assert!(
                refused.as_ref().is_err_and(|why| why.contains("variable")),
                "{sql}: {refused:?}"
            );
        }
        for sql in [
            "SELECT $1, ?2, :a, @b, $a::b, ($1)",
            "SELECT a FROM b WHERE c = $1 (d)",
            "SELECT '$1(', \"@a(\", `:a(`, [#1(] /* $1( */ -- $1(",
            "SELECT a$b(1)",
            "UPDATE a SET b = coalesce(:b,(SELECT 1))",
        ] {
            assert_eq!(Dialect::Sqlite.check(sql), Ok(()), "{sql}");
        }
    }

    #[test]
    fn what_a_with_changes_is_told_by_its_words_outside_of_strings_and_comments() {
        use Dialect::{Mysql, Postgres, Sqlite};
        for (dialect, sql) in [
            (
                Postgres,
                "WITH a AS (UPDATE b SET c = 1 RETURNING c) SELECT * FROM a",
            ),
            (
                Postgres,
                "WITH a AS (SELECT '\\') DELETE FROM b WHERE c = '' ",
            ),
            (Mysql, "WITH a AS (SELECT 5--1) DELETE FROM b"),
            (Mysql, "WITH a AS (SELECT 'it\\'s') DELETE FROM b"),
            (Sqlite, "WITH a AS (SELECT 1) insert INTO b SELECT * FROM a"),
        ] {
            assert!(counts_changes(sql, dialect), "{sql}");
        }
        for (dialect, sql) in [
            (Postgres, "WITH a AS (SELECT 'update') SELECT * FROM a"),
            (
                Postgres,
                "WITH \"delete\" AS (SELECT 1) /* update /* */ delete */ SELECT 1",
            ),
            (Mysql, "WITH a AS (SELECT ' \\' delete ') SELECT 1 # update"),
            (Mysql, "WITH `insert` AS (SELECT 1) SELECT 1 -- delete"),
            (
                Sqlite,
                "WITH [update] AS (SELECT 1) SELECT last_update FROM a -- delete",
            ),
        ] {
            assert!(!counts_changes(sql, dialect), "{sql}");
        }
    }
}
