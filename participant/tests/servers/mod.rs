//! Private database servers for tests: own data directory, loopback, a free port, gone at the end, after a panic too.

#![allow(dead_code, reason = "each test binary uses the half that it needs")]

use std::{
    fs,
    io::Read,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, Weak},
    thread,
    time::{Duration, Instant},
};

/// How long a server may take to come up.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Which server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    Mariadb,
}

/// A running server.
pub(crate) struct Server {
    kind: Kind,
    directory: tempfile::TempDir,
    port: u16,
    settings: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Server {
    /// Starts a server with these settings on top: `name=value`.
    pub(crate) fn start(kind: Kind, settings: &[&str]) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("unanimity-server-")
            .tempdir()
            .unwrap();
        let data = directory.path().join("data");
        fs::create_dir(&data).unwrap();
        if is_root() {
            let user = user(kind);
            run(Command::new("chown")
                .arg("-R")
                .arg(format!("{user}:{user}"))
                .arg(directory.path()));
        }
        match kind {
            Kind::Postgres => {
                let mut command = as_user(kind, &postgres_binary("initdb"));
                run(command
                    .args([
                        "--no-sync",
                        "--auth=trust",
                        "--username=postgres",
                        "--encoding=UTF8",
                        "--locale=C",
                        "-D",
                    ])
                    .arg(&data));
            }
            Kind::Mariadb => {
                let mut command = Command::new("mariadb-install-db");
                command.args([
                    "--no-defaults",
                    "--auth-root-authentication-method=normal",
                    "--skip-test-db",
                ]);
                if is_root() {
                    command.arg(format!("--user={}", user(kind)));
                }
                run(command.arg(format!("--datadir={}", data.display())));
            }
        }
        let settings = settings
            .iter()
            .map(|setting| (*setting).to_owned())
            .collect();
        let server = Self {
            kind,
            directory,
            port: free_port(),
            settings,
            child: Mutex::new(None),
        };
        server.restart();
        server
    }

    /// A server shared by the tests of this binary that run at the same time; gone with the last of them.
    pub(crate) fn shared(kind: Kind, settings: &[&str]) -> Arc<Self> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start(kind, settings));
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// The URL of a database of this server.
    pub(crate) fn url(&self, database: &str) -> String {
        match self.kind {
            Kind::Postgres => format!("postgres://postgres@127.0.0.1:{}/{database}", self.port),
            Kind::Mariadb => format!("mysql://root@127.0.0.1:{}/{database}", self.port),
        }
    }

    /// The URL of a database, for another login.
    pub(crate) fn url_as(&self, login: &str, database: &str) -> String {
        let (scheme, rest) = self
            .url(database)
            .split_once("://")
            .map(|(s, r)| (s.to_owned(), r.to_owned()))
            .unwrap();
        let (_, place) = rest.split_once('@').unwrap();
        format!("{scheme}://{login}@{place}")
    }

    /// Kills every process of the server at once.
    pub(crate) fn kill(&self) {
        let Some(mut child) = self
            .child
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
        else {
            return;
        };
        let mut command = Command::new("kill");
        command.arg("-9").arg(child.id().to_string());
        command.args(children(child.id()));
        let _ = command.stderr(Stdio::null()).status();
        let _ = child.wait();
    }

    /// Starts the server on its data, and waits until it takes connections.
    pub(crate) fn restart(&self) {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let mut child = self.command().spawn().unwrap();
            while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
                if self.answers() {
                    *self.child.lock().unwrap() = Some(child);
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
            // Processes that were just killed may hold the old one's locks for a moment.
            let _ = child.kill();
            let _ = child.wait();
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            assert!(
                Instant::now() < deadline,
                "the server doesn't start:\n{log}"
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn command(&self) -> Command {
        let data = self.directory.path().join("data");
        let mut command = match self.kind {
            Kind::Postgres => {
                let mut command = as_user(self.kind, &postgres_binary("postgres"));
                command.arg("-D").arg(&data).args([
                    "-p",
                    &self.port.to_string(),
                    "-c",
                    "listen_addresses=127.0.0.1",
                ]);
                command.arg("-c").arg(format!(
                    "unix_socket_directories={}",
                    self.directory.path().display()
                ));
                for setting in &self.settings {
                    command.args(["-c", setting]);
                }
                command
            }
            Kind::Mariadb => {
                let mut command = Command::new("mariadbd");
                command.args([
                    "--no-defaults",
                    "--bind-address=127.0.0.1",
                    "--skip-name-resolve",
                    "--innodb-buffer-pool-size=32M",
                ]);
                command
                    .arg(format!("--datadir={}", data.display()))
                    .arg(format!("--port={}", self.port));
                command.arg(format!(
                    "--socket={}",
                    self.directory.path().join("s").display()
                ));
                command.arg(format!(
                    "--pid-file={}",
                    self.directory.path().join("pid").display()
                ));
                if is_root() {
                    command.arg(format!("--user={}", user(self.kind)));
                }
                command.args(self.settings.iter().map(|setting| format!("--{setting}")));
                command
            }
        };
        let log = fs::File::create(self.log()).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn answers(&self) -> bool {
        match self.kind {
            Kind::Postgres => {
                let ready = postgres_binary("pg_isready");
                let port = self.port.to_string();
                let status = Command::new(ready)
                    .args(["-q", "-h", "127.0.0.1", "-p", &port])
                    .status();
                status.is_ok_and(|status| status.success())
            }
            Kind::Mariadb => {
                // It greets first.
                let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else {
                    return false;
                };
                stream
                    .set_read_timeout(Some(Duration::from_secs(1)))
                    .unwrap();
                let mut greeting = [0; 5];
                stream.read_exact(&mut greeting).is_ok() && greeting[4] == 10
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn children(pid: u32) -> Vec<String> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(ToOwned::to_owned).collect()
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

fn user(kind: Kind) -> &'static str {
    match kind {
        Kind::Postgres => "postgres",
        Kind::Mariadb => "mysql",
    }
}

/// PostgreSQL refuses to run as root.
fn as_user(kind: Kind, program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    let user = user(kind);
    command
        .args([
            &format!("--reuid={user}"),
            &format!("--regid={user}"),
            "--clear-groups",
        ])
        .arg(program)
        .current_dir("/");
    command
}

fn postgres_binary(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let mut found: Vec<PathBuf> = versions
        .map(|version| version.unwrap().path().join("bin").join(name))
        .filter(|p| p.exists())
        .collect();
    found.sort();
    found.pop().expect("PostgreSQL's server is installed")
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
