//! Runs a command against private PostgreSQL, MariaDB and MySQL servers and a SQLite file, which are gone afterwards.
//!
//! `with-databases bank-transfer --bank {postgres} --bank {mariadb} --bank {sqlite}`: the words in braces become URLs. Only what is named is
//! started; `{mysql}` needs a `mysqld` in the path.

use std::{
    env,
    process::{Command, ExitCode},
};

use unanimity_tests::{mariadb::Mariadb, postgres::Postgres, system::Scratch};

#[tokio::main]
async fn main() -> ExitCode {
    let mut words: Vec<String> = env::args().skip(1).collect();
    if words.is_empty() {
        eprintln!(
            "usage: with-databases COMMAND…, in which {{postgres}}, {{mariadb}}, {{mysql}} and {{sqlite}} stand for URLs"
        );
        return ExitCode::from(2);
    }
    let scratch = Scratch::new();
    for name in ["{postgres}", "{mariadb}", "{mysql}", "{sqlite}"] {
        if !words.iter().any(|word| word.contains(name)) {
            continue;
        }
        let url = match name {
            "{postgres}" => Postgres::shared().new_database().await,
            "{mariadb}" => Mariadb::shared().new_database().await,
            "{sqlite}" => format!("sqlite:{}", scratch.path("bank.db").display()),
            _ => match Mariadb::shared_mysql() {
                Some(server) => server.new_database().await,
                None => {
                    eprintln!("error: there is no mysqld of MySQL's in the path");
                    return ExitCode::from(2);
                }
            },
        };
        for word in &mut words {
            *word = word.replace(name, &url);
        }
    }
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
