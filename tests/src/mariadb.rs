//! MariaDB and MySQL servers of our own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use sqlx::{AssertSqlSafe, Connection, MySqlConnection};
use tempfile::TempDir;

use crate::{
    patience::eventually, patience::eventually_blocking, port, postgres::run, process::Process,
    user::User, watchdog,
};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// MariaDB.
    Mariadb,
    /// MySQL.
    Mysql,
}

/// A server. It ends when this is dropped.
#[derive(Debug)]
pub struct Mariadb {
    flavour: Flavour,
    directory: TempDir,
    port: u16,
    settings: Vec<String>,
    process: Process,
}

/// The user that tests connect as.
const USERS: &str = "\
CREATE USER IF NOT EXISTS 'bank'@'%' IDENTIFIED BY 'secret';
GRANT ALL ON *.* TO 'bank'@'%' WITH GRANT OPTION;
";

impl Mariadb {
    /// The MariaDB server that all tests of this process share. It has no binary log.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Mariadb> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(Flavour::Mariadb, &[]))
    }

    /// The MySQL server that all tests of this process share; `None` where MySQL is not installed.
    pub fn shared_mysql() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Mariadb>> = OnceLock::new();
        let start = || has_mysql().then(|| Self::start(Flavour::Mysql, &[]));
        SHARED.get_or_init(start).as_ref()
    }

    /// The server of this flavour that all tests of this process share; `None` where MySQL is not installed.
    pub fn shared_of(flavour: Flavour) -> Option<&'static Self> {
        match flavour {
            Flavour::Mariadb => Some(Self::shared()),
            Flavour::Mysql => Self::shared_mysql(),
        }
    }

    /// A server of one's own, with these options, such as `--log-bin`.
    ///
    /// # Panics
    /// Where it is not installed or won't start.
    pub fn start(flavour: Flavour, settings: &[&str]) -> Self {
        let directory = TempDir::with_prefix("unanimity-mariadb-").expect("a temporary directory");
        watchdog::directory(directory.path());
        // Its own place for temporary tables: a server that starts removes those of every other server there.
        let temporary = directory.path().join("tmp");
        fs::create_dir(&temporary).expect("the directory is ours");
        let user = User::named("mysql");
        user.own(directory.path());
        user.own(&temporary);
        let data = format!("--datadir={}", directory.path().join("data").display());
        let (installer, options): (_, &[&str]) = match flavour {
            Flavour::Mariadb => (
                "mariadb-install-db",
                &["--auth-root-authentication-method=normal", "--skip-test-db"],
            ),
            Flavour::Mysql => ("mysqld", &["--initialize-insecure"]),
        };
        let mut install = user.command(&program(installer));
        run(install
            .args(["--no-defaults", &data])
            .args(options)
            .env("TMPDIR", &temporary)
            .current_dir(directory.path())
            .stdout(Stdio::null()));
        fs::write(directory.path().join("users.sql"), USERS).expect("the directory is ours");
        let settings = settings.iter().map(ToString::to_string).collect();
        let port = port::free();
        let process = launch(flavour, directory.path(), port, &settings);
        let mut server = Self {
            flavour,
            directory,
            port,
            settings,
            process,
        };
        server.wait_until_ready();
        server
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("mysql://bank:secret@127.0.0.1:{}/{database}", self.port)
    }

    /// The same for another login: `user:password`.
    pub fn url_as(&self, login: &str, database: &str) -> String {
        self.url(database).replace("bank:secret", login)
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

    /// Runs a statement in the database `mysql`.
    ///
    /// # Panics
    /// Where it fails.
    pub async fn execute(&self, statement: &str) {
        execute(&self.url("mysql"), statement).await;
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts a killed server again.
    pub fn restart(&mut self) {
        self.process = launch(
            self.flavour,
            self.directory.path(),
            self.port,
            &self.settings,
        );
        self.wait_until_ready();
    }

    /// It listens only when it is ready.
    fn wait_until_ready(&mut self) {
        let Self { process, port, .. } = self;
        eventually_blocking("MariaDB", || {
            assert!(process.ended().is_none(), "{}", process.log());
            std::net::TcpStream::connect(("127.0.0.1", *port)).ok()
        });
    }
}

fn launch(flavour: Flavour, directory: &Path, port: u16, settings: &Vec<String>) -> Process {
    let server = match flavour {
        Flavour::Mariadb => "mariadbd",
        Flavour::Mysql => "mysqld",
    };
    let mut server = User::named("mysql").command(&program(server));
    let file = |option: &str, name: &str| format!("--{option}={}", directory.join(name).display());
    server
        .arg("--no-defaults")
        .args([
            file("datadir", "data"),
            file("socket", "socket"),
            file("pid-file", "pid"),
            file("tmpdir", "tmp"),
            file("init-file", "users.sql"),
        ])
        .args([
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--max-connections=500",
        ])
        .args([
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=1",
        ])
        .arg(format!("--port={port}"))
        .args(settings)
        .current_dir(directory);
    if flavour == Flavour::Mysql {
        server.args(["--mysqlx=OFF", "--secure-file-priv=NULL"]);
    }
    Process::start(&mut server, &directory.join("server.log"))
}

/// Runs a statement in a database.
///
/// # Panics
/// Where it fails.
pub async fn execute(url: &str, statement: &str) {
    let mut connection = eventually("a connection", || async {
        MySqlConnection::connect(url).await.ok()
    })
    .await;
    let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
        .execute(&mut connection)
        .await;
    done.unwrap_or_else(|error| panic!("{statement}: {error}"));
}

/// MariaDB calls itself mysqld too.
fn has_mysql() -> bool {
    let Some(mysqld) = find("mysqld") else {
        return false;
    };
    let version = Command::new(mysqld).arg("--version").output();
    version.is_ok_and(|output| !String::from_utf8_lossy(&output.stdout).contains("MariaDB"))
}

fn program(name: &str) -> PathBuf {
    find(name)
        .unwrap_or_else(|| panic!("{name} is not installed; cargo xtask test installs MariaDB"))
}

/// Servers are often where only root looks.
fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    directories
        .map(|directory| directory.join(name))
        .find(|path| path.exists())
}
