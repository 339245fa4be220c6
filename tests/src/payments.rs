//! The service that `docs/http.md` shows: payments, which keep the contract.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use sqlx::{
    AssertSqlSafe, Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use crate::{patience::eventually_blocking, port, process::Process, service};

/// What an account holds in the beginning.
pub const INITIAL_CENTS: i64 = 1_000;

/// The running service.
#[derive(Debug)]
pub struct Payments {
    /// Where it listens.
    pub address: SocketAddr,
    process: Process,
    directory: PathBuf,
}

impl Payments {
    /// Starts it with its files in a directory, and one account, `4711`.
    ///
    /// # Panics
    /// Where it doesn't come to listen.
    pub async fn start(directory: &Path) -> Self {
        fs::create_dir_all(directory).expect("the directory is ours");
        fs::write(directory.join("service.py"), code()).expect("the directory is ours");
        let address = (Ipv4Addr::LOCALHOST, port::free()).into();
        let payments = Self {
            process: launch(directory, address),
            address,
            directory: directory.into(),
        };
        let account = format!("INSERT INTO account VALUES ('4711', {INITIAL_CENTS})");
        payments.rows(&account).await;
        payments
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again after its end.
    pub fn restart(&mut self) {
        self.process = launch(&self.directory, self.address);
    }

    /// What the account holds.
    ///
    /// # Panics
    /// Where it isn't there.
    pub async fn balance(&self) -> i64 {
        self.rows("SELECT cents FROM account").await[0].get(0)
    }

    /// What became of each key of a transaction, in their order.
    pub async fn states(&self, transaction: &str) -> Vec<(String, String)> {
        let query =
            format!("SELECT key, state FROM request WHERE key LIKE '{transaction}.%' ORDER BY key");
        let rows = self.rows(&query).await;
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// What it answers to a request that comes past the agent.
    ///
    /// # Panics
    /// Where it is away.
    pub async fn post(&self, path: &str, key: &str, body: &Value) -> String {
        let answer = service::post(self.address, path, key, body).await;
        String::from_utf8(answer.expect("it runs")).expect("it answers in text")
    }

    async fn rows(&self, query: &str) -> Vec<SqliteRow> {
        let options = SqliteConnectOptions::new().filename(self.directory.join("payments.db"));
        let connection = SqliteConnection::connect_with(&options).await;
        let mut connection = connection.expect("the service has made it");
        let rows = sqlx::query(AssertSqlSafe(query.to_owned()))
            .fetch_all(&mut connection)
            .await;
        rows.unwrap_or_else(|error| panic!("{query}: {error}"))
    }
}

fn code() -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/http.md");
    let page = fs::read_to_string(page).expect("the page is there");
    let code = page
        .split_once("```python\n")
        .expect("it shows a service")
        .1;
    code.split_once("```").expect("the service ends").0.into()
}

fn launch(directory: &Path, address: SocketAddr) -> Process {
    let mut command = Command::new("python3");
    command
        .args(["service.py", &address.port().to_string()])
        .current_dir(directory);
    let mut process = Process::start(&mut command, &directory.join("payments.log"));
    eventually_blocking("the service", || {
        if process.ended().is_some() {
            panic!("{}", process.log());
        }
        TcpStream::connect(address).ok()
    });
    process
}
