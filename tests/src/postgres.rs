//! PostgreSQL servers of our own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

use crate::{
    patience::{eventually, eventually_blocking},
    port,
    process::Process,
    user::User,
    watchdog,
};

/// A server. It ends when this is dropped.
#[derive(Debug)]
pub struct Postgres {
    directory: TempDir,
    port: u16,
    settings: Vec<String>,
    process: Process,
}

impl Postgres {
    /// The server that all tests of this process share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&["max_prepared_transactions=100"]))
    }

    /// A server of one's own, with these settings.
    ///
    /// # Panics
    /// Where PostgreSQL is not installed or won't start.
    pub fn start(settings: &[&str]) -> Self {
        let directory = TempDir::with_prefix("unanimity-postgres-").expect("a temporary directory");
        watchdog::directory(directory.path());
        let user = User::named("postgres");
        user.own(directory.path());
        let mut initdb = user.command(&program("initdb"));
        let initdb = initdb
            .args([
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                "-D",
            ])
            .arg(directory.path().join("data"))
            .current_dir(directory.path())
            .stdout(Stdio::null());
        run(initdb);
        let settings = settings.iter().map(ToString::to_string).collect();
        let port = port::free();
        let process = launch(directory.path(), port, &settings);
        let mut server = Self {
            directory,
            port,
            settings,
            process,
        };
        server.wait_until_ready();
        server
    }

    /// The URL of one of its databases, for its superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The same for another login: a user, or `user:password`.
    pub fn url_as(&self, login: &str, database: &str) -> String {
        self.url(database)
            .replace("postgres@", &format!("{login}@"))
    }

    /// Makes a new database, and gives its URL.
    ///
    /// # Panics
    /// Where the server is down.
    pub async fn new_database(&self) -> String {
        let name = format!("bank_{}", uuid::Uuid::new_v4().simple());
        self.execute(&format!("CREATE DATABASE {name}")).await;
        self.url(&name)
    }

    /// Runs a statement in the database `postgres`.
    ///
    /// # Panics
    /// Where it fails.
    pub async fn execute(&self, statement: &str) {
        execute(&self.url("postgres"), statement).await;
    }

    /// Kills all of the server's processes at once.
    pub fn kill(&mut self) {
        self.process.kill();
        // Its children notice by themselves, and until then no other server gets the data directory.
        let data = self.directory.path().join("data");
        eventually_blocking("the end of PostgreSQL's processes", || {
            (!works_in(&data)).then_some(())
        });
    }

    /// Starts a killed server again.
    pub fn restart(&mut self) {
        self.process = launch(self.directory.path(), self.port, &self.settings);
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        let Self {
            process,
            directory,
            port,
            ..
        } = self;
        let mut ready = Command::new(program("pg_isready"));
        ready
            .args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()])
            .current_dir(directory.path());
        eventually_blocking("PostgreSQL", || {
            assert!(process.ended().is_none(), "{}", process.log());
            ready
                .status()
                .is_ok_and(|status| status.success())
                .then_some(())
        });
    }
}

fn launch(directory: &Path, port: u16, settings: &Vec<String>) -> Process {
    let user = User::named("postgres");
    let mut server = user.command(&program("postgres"));
    server
        .arg("-D")
        .arg(directory.join("data"))
        .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k"])
        .arg(directory)
        .args([
            "-c",
            "max_connections=300",
            "-c",
            "shared_buffers=32MB",
            "-c",
            "fsync=on",
        ])
        .current_dir(directory);
    for setting in settings {
        server.args(["-c", setting]);
    }
    Process::start(&mut server, &directory.join("server.log"))
}

/// Runs a statement in a database.
///
/// # Panics
/// Where it fails.
pub async fn execute(url: &str, statement: &str) {
    let mut connection = eventually("a connection", || async {
        PgConnection::connect(url).await.ok()
    })
    .await;
    let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
        .execute(&mut connection)
        .await;
    done.unwrap_or_else(|error| panic!("{statement}: {error}"));
}

/// Whether any process works in a directory.
fn works_in(directory: &Path) -> bool {
    let processes = fs::read_dir("/proc").expect("this is Linux").flatten();
    let mut directories = processes.map(|process| fs::read_link(process.path().join("cwd")));
    directories.any(|found| found.is_ok_and(|found| found == directory))
}

/// Debian keeps PostgreSQL's programs out of the path, by version.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut directories: Vec<_> = versions.map(|version| version.path().join("bin")).collect();
    directories.sort();
    let path = env::var_os("PATH").unwrap_or_default();
    directories.reverse();
    directories.extend(env::split_paths(&path));
    let found = directories
        .into_iter()
        .map(|directory| directory.join(name))
        .find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("PostgreSQL's {name} is not installed; cargo xtask test installs it")
    })
}

pub(crate) fn run(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{errors}",
        output.status
    );
}
