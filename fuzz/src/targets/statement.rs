//! What kind of statement a text of SQL is.

use unanimity_participant::{fuzzing::takes, operation::Dialect};

use crate::Target;

pub(super) const STATEMENT: Target = Target {
    name: "statement",
    promise: "no text of SQL makes its reading panic, none with a zero byte passes, and a comment before it or after it changes nothing",
    check,
    seeds,
};

fn check(bytes: &[u8]) {
    let Ok(sql) = std::str::from_utf8(bytes) else {
        return;
    };
    for dialect in [Dialect::Postgres, Dialect::Mysql, Dialect::Sqlite] {
        let taken = takes(dialect, sql);
        assert!(!taken || !sql.contains('\0'), "a zero byte passes");
        let led = format!("/* x */ {sql}");
        assert_eq!(takes(dialect, &led), taken, "a comment changes it: {sql:?}");
    }
}

fn seeds() -> Vec<Vec<u8>> {
    [
        "UPDATE account SET balance = balance - $1 WHERE id = $2 AND balance >= $1",
        "WITH moved AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM moved",
        "-- a comment\nSELECT 'it''s', \"q\", `b`, [c], $$d$$, /* e /* f */ g */ 1;",
        "SELECT :a, @b, $c::d(e), ?1 ; ",
        "(SELECT 1)",
        "/*!40000 DROP TABLE a */",
        "COMMIT",
    ]
    .map(|text| text.into())
    .into()
}
