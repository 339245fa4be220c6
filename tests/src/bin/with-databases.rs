//! Runs a command against private PostgreSQL and MariaDB servers and a SQLite file, which are gone afterwards.
//!
//! `with-databases bank-transfer --bank {postgres} --bank {mariadb} --bank {sqlite}`: the words in braces become URLs.

use std::{
    env,
    process::{Command, ExitCode},
};

use unanimity_tests::{mariadb::Mariadb, postgres::Postgres, system::Scratch};

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    if words.is_empty() {
        eprintln!(
            "usage: with-databases COMMAND…, in which {{postgres}}, {{mariadb}} and {{sqlite}} stand for URLs"
        );
        return ExitCode::from(2);
    }
    let scratch = Scratch::new();
    let urls = [
        ("{postgres}", Postgres::shared().new_database().await),
        ("{mariadb}", Mariadb::shared().new_database().await),
        (
            "{sqlite}",
            format!("sqlite:{}", scratch.path("bank.db").display()),
        ),
    ];
    let words: Vec<String> = words
        .iter()
        .map(|word| {
            urls.iter()
                .fold(word.clone(), |word, (name, url)| word.replace(name, url))
        })
        .collect();
    let status = Command::new(&words[0]).args(&words[1..]).status();
    match status {
        Ok(status) => ExitCode::from(
            status
                .code()
                .and_then(|code| code.try_into().ok())
                .unwrap_or(1),
        ),
        Err(error) => {
            eprintln!("error: {}: {error}", words[0]);
            ExitCode::from(2)
        }
    }
}
