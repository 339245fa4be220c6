//! The agent's configuration: flags, environment and one TOML file, parsed once into checked types.
//!
//! A flag wins over the environment, the environment over the file, the file over the defaults. A key that nobody knows is refused by its name,
//! so that a slip of the pen never passes for a default. Nothing here may print the database's URL, which holds a password, nor any value of the
//! file, for the URL may stand in the wrong place.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    num::NonZeroU32,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer, de, de::DeserializeOwned};

use crate::{
    operation::{Catalog, CatalogError, OperationConfig},
    session::{self, InvalidOptions, Tls, TlsIdentity},
};

/// Where the coordinator is sought if nothing else is said.
pub const DEFAULT_COORDINATOR: &str = "http://127.0.0.1:7420";

/// How many connections to the database are opened at most if nothing else is said.
pub const DEFAULT_CONNECTIONS: NonZeroU32 = NonZeroU32::new(32).expect("32 is not 0");

/// How long marker rows are kept if nothing else is said.
pub const DEFAULT_MARKER_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A whole configuration file, as the help shows it.
pub const EXAMPLE: &str = r#"name        = "bank_a"    # how transactions call this database
coordinator = "http://127.0.0.1:7420"
database    = "postgres://bank@db.internal/bank"   # or mysql://…, sqlite:/var/lib/bank.db
# database_file = "/run/secrets/database"          # instead: a file that holds the URL
connections = 32          # at most; SQLite has one writer, whatever is said here
marker_retention = "7d"   # how long the database remembers which requests committed

# What applications may ask for, by name. allow_sql = true takes SQL text too.
[operation.debit]
sql = "UPDATE account SET balance = balance - $1 WHERE id = $2 AND balance >= $1"
parameters = [{ name = "amount", type = "integer" }, { name = "account", type = "text" }]
expected_rows = 1         # any other number votes no

[operation.credit]
sql = "UPDATE account SET balance = balance + $1 WHERE id = $2"
parameters = [{ name = "amount", type = "integer" }, { name = "account", type = "text" }]
expected_rows = 1
"#;

/// The agent's settings, as flags and environment variables give them. All that is missing comes from the file, or from the defaults.
#[derive(Clone, Default, clap::Args)]
pub struct SqlArguments {
    /// The configuration file, in TOML; `--help` shows one.
    #[arg(long, value_name = "FILE", env = "UNANIMITY_CONFIG")]
    pub config: Option<PathBuf>,

    /// Where the coordinator listens; https:// needs --coordinator-ca [default: http://127.0.0.1:7420].
    #[arg(long, value_name = "URI", env = "UNANIMITY_COORDINATOR")]
    pub coordinator: Option<String>,

    /// The participant's name: what transactions call this database. All agents of one database share one name.
    #[arg(long, value_name = "NAME", env = "UNANIMITY_PARTICIPANT")]
    pub name: Option<String>,

    /// The database: postgres://USER:PASSWORD@HOST/DATABASE, mysql://…, mariadb://…, or sqlite:PATH.
    #[arg(
        long,
        value_name = "URL",
        env = "UNANIMITY_DATABASE",
        hide_env_values = true
    )]
    pub database: Option<String>,

    /// A file that holds the database's URL, so that its password shows in no list of processes.
    #[arg(
        long,
        value_name = "FILE",
        env = "UNANIMITY_DATABASE_FILE",
        conflicts_with = "database"
    )]
    pub database_file: Option<PathBuf>,

    /// At most this many connections to the database; it bounds the branches that are open at once [default: 32].
    #[arg(long, value_name = "NUMBER", env = "UNANIMITY_CONNECTIONS")]
    pub connections: Option<NonZeroU32>,

    /// Take SQL text too, not only the operations that the file names. Whoever reaches the coordinator can then run any statement.
    #[arg(long, value_name = "BOOL", env = "UNANIMITY_ALLOW_SQL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_sql: Option<bool>,

    /// How long marker rows are kept: seconds, or a number with s, m, h, d or w [default: 7d].
    #[arg(long, value_name = "TIME", env = "UNANIMITY_MARKER_RETENTION")]
    pub marker_retention: Option<Retention>,

    /// TLS: the certificate (PEM) of the authority that signed the coordinator's.
    #[arg(long, value_name = "FILE", env = "UNANIMITY_COORDINATOR_CA")]
    pub coordinator_ca: Option<PathBuf>,

    /// TLS: the certificate (PEM) that this agent shows to the coordinator; with --coordinator-key.
    #[arg(long, value_name = "FILE", env = "UNANIMITY_COORDINATOR_CERTIFICATE")]
    pub coordinator_certificate: Option<PathBuf>,

    /// TLS: the private key (PEM) of --coordinator-certificate.
    #[arg(long, value_name = "FILE", env = "UNANIMITY_COORDINATOR_KEY")]
    pub coordinator_key: Option<PathBuf>,
}

/// What an agent is started with.
#[derive(Clone)]
pub struct Config {
    /// The participant's name.
    pub name: String,
    /// Where the coordinator listens.
    pub coordinator: String,
    /// The database's URL, with its password.
    pub database: String,
    /// At most this many connections.
    pub connections: NonZeroU32,
    /// How long marker rows are kept.
    pub marker_retention: Duration,
    /// The operations that it offers.
    pub catalog: Catalog,
    /// Certificates, for an `https` coordinator.
    pub tls: Option<Tls>,
}

/// Without the URL.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("name", &self.name)
            .field("coordinator", &self.coordinator)
            .finish_non_exhaustive()
    }
}

/// A configuration that can't be used. The text names the key, and never holds the database's URL.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `database_file` can't be read. Its path stays unsaid: it may be the URL itself.
    #[error("database_file can't be read: {0}")]
    DatabaseFile(io::Error),
    /// `header_file` can't be used. Neither its path, which may be a header itself, nor what it holds is said.
    #[error("header_file {0}")]
    HeaderFile(String),
    /// The file is not as it must be.
    #[error("{}, line {line}: {problem}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// Names the key.
        problem: String,
    },
    /// A setting is missing, or contradicts another.
    #[error("{0}")]
    Setting(&'static str),
    /// An operation can't be offered.
    #[error("the operations can't be used: {0}")]
    Catalog(#[from] CatalogError),
    /// The session can't work so.
    #[error(transparent)]
    Session(#[from] InvalidOptions),
}

impl Config {
    /// The defaults, for a database and a name. No operations, no SQL text.
    pub fn new(name: impl Into<String>, database: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            coordinator: DEFAULT_COORDINATOR.into(),
            database: database.into(),
            connections: DEFAULT_CONNECTIONS,
            marker_retention: DEFAULT_MARKER_RETENTION,
            catalog: Catalog::default(),
            tls: None,
        }
    }

    /// Reads the file that `arguments` name, if any, and lays the arguments over it.
    ///
    /// # Errors
    /// Where a file can't be read, a key is unknown, or a setting is missing or makes no sense.
    pub fn load(arguments: SqlArguments) -> Result<Self, ConfigError> {
        let file = arguments
            .config
            .as_deref()
            .map(File::read)
            .transpose()?
            .unwrap_or_default();
        let config = Self::merge(arguments, file)?;
        session::check(&config.coordinator, &config.name, config.tls.as_ref())?;
        Ok(config)
    }

    fn merge(arguments: SqlArguments, file: File) -> Result<Self, ConfigError> {
        let tls = tls(
            arguments.coordinator_ca.or(file.coordinator_ca),
            arguments
                .coordinator_certificate
                .or(file.coordinator_certificate),
            arguments.coordinator_key.or(file.coordinator_key),
        )?;
        let database = database(arguments.database, arguments.database_file)?;
        let database = match database {
            Some(database) => Some(database),
            None => self::database(file.database, file.database_file)?,
        };
        let allow_sql = arguments.allow_sql.or(file.allow_sql).unwrap_or(false);
        let retention = arguments.marker_retention.or(file.marker_retention);
        Ok(Self {
            name: arguments.name.or(file.name).ok_or(ConfigError::Setting(
                "the participant has no name; give --name, UNANIMITY_PARTICIPANT, or name in the file",
            ))?,
            coordinator: arguments.coordinator.or(file.coordinator).unwrap_or_else(|| DEFAULT_COORDINATOR.into()),
            database: database.ok_or(ConfigError::Setting(
                "there is no database; give --database, UNANIMITY_DATABASE, or database or database_file in the file",
            ))?,
            connections: arguments.connections.or(file.connections).unwrap_or(DEFAULT_CONNECTIONS),
            marker_retention: retention.map_or(DEFAULT_MARKER_RETENTION, |retention| retention.0),
            catalog: Catalog::from_config(file.operation, allow_sql)?,
            tls,
        })
    }
}

/// The file's keys.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    coordinator: Option<String>,
    database: Option<String>,
    database_file: Option<PathBuf>,
    connections: Option<NonZeroU32>,
    allow_sql: Option<bool>,
    marker_retention: Option<Retention>,
    coordinator_ca: Option<PathBuf>,
    coordinator_certificate: Option<PathBuf>,
    coordinator_key: Option<PathBuf>,
    #[serde(default)]
    operation: BTreeMap<String, OperationConfig>,
}

impl File {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let mut file: Self = read_file(path)?;
        file.anchor(path.parent().unwrap_or(Path::new("")));
        Ok(file)
    }

    /// Paths in the file start from where the file is.
    fn anchor(&mut self, directory: &Path) {
        let paths = [
            &mut self.database_file,
            &mut self.coordinator_ca,
            &mut self.coordinator_certificate,
            &mut self.coordinator_key,
        ];
        for path in paths.into_iter().flatten() {
            *path = directory.join(&path);
        }
    }
}

/// Reads the keys of a file.
pub(crate) fn read_file<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.into(),
        source,
    })?;
    parse(path, &text)
}

/// The parser's own report would quote the line, and with it perhaps a password.
fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    let refused = |error: &toml::de::Error, problem: String| ConfigError::File {
        path: path.into(),
        line: error
            .span()
            .map_or(1, |span| 1 + text[..span.start].matches('\n').count()),
        problem,
    };
    let document =
        toml::Deserializer::parse(text).map_err(|error| refused(&error, error.message().into()))?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        let key = error.path().to_string();
        refused(error.inner(), problem(&key, error.inner().message()))
    })
}

/// What is wrong with the key, without its value. serde's texts quote the value first, and then say what was expected; those about fields quote
/// only the field.
fn problem(key: &str, message: &str) -> String {
    let of_field = ["unknown field ", "missing field ", "duplicate field "];
    if of_field.iter().any(|start| message.starts_with(start)) {
        return message.into();
    }
    match message.rsplit_once("expected ") {
        Some((_, expected)) => format!("{key}: expected {expected}"),
        None => format!("{key}: its value can't be used"),
    }
}

/// The URL, given or in a file.
fn database(url: Option<String>, file: Option<PathBuf>) -> Result<Option<String>, ConfigError> {
    match (url, file) {
        (Some(_), Some(_)) => Err(ConfigError::Setting(
            "give database or database_file, not both",
        )),
        (url, None) => Ok(url),
        (None, Some(path)) => {
            let text = fs::read_to_string(path).map_err(ConfigError::DatabaseFile)?;
            Ok(Some(text.trim().to_owned()))
        }
    }
}

/// Reads the certificates for the way to the coordinator.
pub(crate) fn tls(
    authority: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<Tls>, ConfigError> {
    let read = |path: PathBuf| fs::read(&path).map_err(|source| ConfigError::Read { path, source });
    let identity = match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(TlsIdentity {
            certificate: read(certificate)?,
            key: read(key)?,
        }),
        _ => {
            return Err(ConfigError::Setting(
                "coordinator_certificate and coordinator_key go together",
            ));
        }
    };
    match (authority, identity) {
        (Some(authority), identity) => Ok(Some(Tls {
            authority: read(authority)?,
            identity,
        })),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(ConfigError::Setting(
            "coordinator_certificate needs coordinator_ca, which signed the coordinator's",
        )),
    }
}

/// A span of time: `7d`, `12h`, `30m`, `45s`, `2w`, or seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention(pub Duration);

impl FromStr for Retention {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = match &text[digits.len()..] {
            "" | "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            "d" => 24 * 60 * 60,
            "w" => 7 * 24 * 60 * 60,
            _ => return Err(RETENTION_EXPECTED),
        };
        let number: u64 = digits.parse().map_err(|_| RETENTION_EXPECTED)?;
        let seconds = number
            .checked_mul(unit)
            .filter(|seconds| *seconds > 0)
            .ok_or(RETENTION_EXPECTED)?;
        Ok(Self(Duration::from_secs(seconds)))
    }
}

const RETENTION_EXPECTED: &str =
    "expected a time above 0: seconds, or a number with s, m, h, d or w, such as \"7d\"";

impl<'de> Deserialize<'de> for Retention {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Retention;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds, or a text such as \"7d\"")
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Retention, E> {
                self.visit_str(&seconds.to_string())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Retention, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use unanimity_proto::v1::OperationPolicy;

    use super::*;

    fn load(text: &str, arguments: SqlArguments) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("agent.toml");
        fs::write(&path, text).expect("written");
        fs::write(directory.path().join("secret"), "sqlite://secret.db\n").expect("written");
        Config::load(SqlArguments {
            config: Some(path),
            ..arguments
        })
    }

    fn refusal(text: &str) -> String {
        load(text, SqlArguments::default())
            .expect_err("refused")
            .to_string()
    }

    #[test]
    fn the_example_is_a_good_configuration() {
        let config = load(EXAMPLE, SqlArguments::default()).expect("good");
        assert_eq!(
            (config.name.as_str(), config.connections.get()),
            ("bank_a", 32)
        );
        assert_eq!(config.catalog.signatures().len(), 2);
        assert_eq!(config.catalog.policy(), OperationPolicy::Listed);
    }

    #[test]
    fn an_unknown_key_is_refused_by_its_name_and_line() {
        let refused = refusal("name = \"a\"\nconections = 3\n");
        assert!(
            refused.contains("`conections`") && refused.contains("line 2"),
            "{refused}"
        );
        let refused = refusal("name = \"a\"\njournal = \"shared\"\n");
        assert!(refused.contains("`journal`"), "{refused}");
        let refused = refusal("[operation.debit]\nsql = \"SELECT 1\"\nexpect_rows = 1\n");
        assert!(
            refused.contains("`expect_rows`") && refused.contains("line 3"),
            "{refused}"
        );
    }

    #[test]
    fn what_is_refused_never_shows_the_password() {
        for text in [
            "database = postgres://u:hunter2@h/d\n",
            "database = \"hunter2\"\ndatabase_file = \"x\"",
            "database = [\"hunter2\"]",
            "database_file = \"postgres://u:hunter2@h/d\"",
            "name = \"postgres://u:hunter2@h/d\"\ndatabase = \"sqlite://a\"",
            "name = \"a\"\ndatabase = \"sqlite://a\"\ncoordinator = \"postgres://u:hunter2@h/d\"",
            "name = \"a\"\ndatabase = \"sqlite://a\"\ncoordinator = \"hunter2 hunter2\"",
            "[operation.a]\nsql = \"SELECT 1\"\nparameters = [{ name = \"a\", type = \"hunter2, expected hunter2\" }]",
            "[operation.a]\nsql = \"SELECT 1\"\nparameters = \"hunter2\"",
        ] {
            let refused = refusal(text);
            assert!(!refused.contains("hunter2"), "{refused}");
        }
        for key in [
            "connections",
            "allow_sql",
            "marker_retention",
            "operation",
            "operation.a",
            "operation.a.expected_rows",
        ] {
            let refused = refusal(&format!("\n{key} = \"postgres://u:hunter2@h/d\"\n"));
            assert!(
                refused.contains(&format!("line 2: {key}: expected ")),
                "{refused}"
            );
            assert!(!refused.contains("hunter2"), "{refused}");
        }
        let config = Config::new("a", "postgres://u:hunter2@h/d");
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn arguments_win_over_the_file_and_the_file_over_defaults() {
        let text = "name = \"file\"\ndatabase = \"sqlite://file.db\"\nconnections = 7\nallow_sql = true\nmarker_retention = 60\n";
        let config = load(text, SqlArguments::default()).expect("good");
        assert_eq!(
            (config.name.as_str(), config.database.as_str()),
            ("file", "sqlite://file.db")
        );
        assert_eq!(
            (config.connections.get(), config.coordinator.as_str()),
            (7, DEFAULT_COORDINATOR)
        );
        assert_eq!(
            (config.catalog.allows_sql(), config.marker_retention),
            (true, Duration::from_secs(60))
        );

        let arguments = SqlArguments {
            name: Some("flag".into()),
            database: Some("sqlite://flag.db".into()),
            connections: NonZeroU32::new(9),
            allow_sql: Some(false),
            marker_retention: "2w".parse().ok(),
            coordinator: Some("http://there:1".into()),
            ..SqlArguments::default()
        };
        let config = load(text, arguments).expect("good");
        assert_eq!(
            (config.name.as_str(), config.database.as_str()),
            ("flag", "sqlite://flag.db")
        );
        assert_eq!(
            (config.connections.get(), config.coordinator.as_str()),
            (9, "http://there:1")
        );
        assert_eq!(
            (config.catalog.allows_sql(), config.marker_retention),
            (false, Duration::from_secs(1_209_600))
        );
    }

    #[test]
    fn a_secret_file_beside_the_configuration_gives_the_url() {
        let config = load(
            "name = \"a\"\ndatabase_file = \"secret\"\n",
            SqlArguments::default(),
        )
        .expect("good");
        assert_eq!(config.database, "sqlite://secret.db");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_to_do() {
        let cases = [
            ("database = \"sqlite://a\"", "--name"),
            ("name = \"a\"", "--database"),
            ("name = \"A B\"\ndatabase = \"sqlite://a\"", "name: "),
            (
                "name = \"a\"\ndatabase = \"sqlite://a\"\nconnections = 0",
                "nonzero",
            ),
            (
                "name = \"a\"\ndatabase = \"sqlite://a\"\nmarker_retention = \"7 days\"",
                "\"7d\"",
            ),
            (
                "name = \"a\"\ndatabase = \"sqlite://a\"\ncoordinator_key = \"k\"",
                "go together",
            ),
            (
                "name = \"a\"\ndatabase = \"sqlite://a\"\ncoordinator = \"https://h\"",
                "authority",
            ),
            (
                "name = \"a\"\ndatabase = \"sqlite://a\"\n[operation.\"a b\"]\nsql = \"SELECT 1\"",
                "\"a b\"",
            ),
        ];
        for (text, expected) in cases {
            let refused = refusal(text);
            assert!(refused.contains(expected), "{text}: {refused}");
        }
    }

    #[test]
    fn retention_takes_seconds_and_units() {
        let seconds = |text: &str| {
            text.parse::<Retention>()
                .map(|retention| retention.0.as_secs())
                .ok()
        };
        assert_eq!(
            [seconds("45"), seconds("45s"), seconds("2m"), seconds("3h")],
            [Some(45), Some(45), Some(120), Some(10_800)]
        );
        for text in [
            "",
            "d",
            "0",
            "0d",
            "-1d",
            "1.5h",
            "7 d",
            "99999999999999999w",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
