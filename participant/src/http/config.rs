//! The configuration of the agent around a service: flags, environment and one TOML file, parsed once into checked types.
//!
//! As for databases ([`crate::config`]): a flag wins over the environment, that over the file, the file over the defaults; unknown keys are
//! refused; and no value of the file is ever shown, for a secret may stand in the wrong place.

use std::{
    collections::BTreeMap,
    fmt, fs,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde::Deserialize;

use super::operations::{OperationConfig, Operations};
use crate::{
    config::{ConfigError, DEFAULT_COORDINATOR, Retention, read_file, tls},
    session::{self, Tls},
};

/// How many branches and steps are at work at once at most if nothing else is said.
pub const DEFAULT_CAPACITY: NonZeroU32 = NonZeroU32::new(64).expect("64 is not 0");

/// How long the journal remembers what has ended if nothing else is said.
const DEFAULT_JOURNAL_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// For `--help`.
pub const ABOUT: &str = "A service in any language, by its own HTTP endpoints.

Start it with a file:      unanimity-participant http --config agent.toml

The agent posts JSON to the service: to prepare, confirm and cancel a branch of a two-phase commit, and to execute and \
compensate the steps of a saga. What the endpoints must do is told in docs/http.md. A flag wins over its environment \
variable, that over the file, and the file over the default. The journal is this agent's alone: give it a place that \
outlives the agent.";

/// A whole configuration file, as the help shows it.
pub const EXAMPLE: &str = r#"name        = "payments"    # how transactions call this service
coordinator = "http://127.0.0.1:7420"
service     = "http://127.0.0.1:8080"   # where its endpoints are; or https://…
# service_ca  = "/etc/unanimity/ca.pem" # who signed its certificate, if no authority of the system did
# header_file = "/run/secrets/header"   # sent with each request; holds a line such as: Authorization: Bearer …
journal     = "/var/lib/unanimity/payments.journal"
journal_retention = "7d"    # how long it remembers what has ended
capacity    = 64            # branches and steps at work at once, at most

# What transactions may ask for, by name, and where it is posted to.
[operation.charge]
parameters = [{ name = "card", type = "text" }, { name = "cents", type = "integer" }]
# In two-phase commit; these three go together.
prepare = "/charge/try"
confirm = "/charge/confirm"
cancel  = "/charge/cancel"
# In sagas: the step, what undoes it, and what tells whether it took effect.
execute    = "/charge"
compensate = "/charge/refund"
settle     = "/charge/status"
"#;

/// The agent's settings, as flags and environment variables give them. All that is missing comes from the file, or from the defaults.
#[derive(Clone, Default, clap::Args)]
pub struct HttpArguments {
    /// The configuration file, in TOML; `--help` shows one.
    #[arg(long, value_name = "FILE", env = "UNANIMITY_CONFIG")]
    pub config: Option<PathBuf>,

    /// Where the coordinator listens; https:// needs --coordinator-ca [default: http://127.0.0.1:7420].
    #[arg(long, value_name = "URI", env = "UNANIMITY_COORDINATOR")]
    pub coordinator: Option<String>,

    /// The participant's name: what transactions call this service.
    #[arg(long, value_name = "NAME", env = "UNANIMITY_PARTICIPANT")]
    pub name: Option<String>,

    /// The service: http://HOST:PORT or https://HOST, and a path that leads all endpoints, if there is one.
    #[arg(
        long,
        value_name = "URI",
        env = "UNANIMITY_SERVICE",
        hide_env_values = true
    )]
    pub service: Option<String>,

    /// TLS: the certificate (PEM) of the authority that signed the service's. Without it, the system's authorities are trusted.
    #[arg(long, value_name = "FILE", env = "UNANIMITY_SERVICE_CA")]
    pub service_ca: Option<PathBuf>,

    /// A file of headers to send with each request, one a line, such as: Authorization: Bearer …
    #[arg(long, value_name = "FILE", env = "UNANIMITY_HEADER_FILE")]
    pub header_file: Option<PathBuf>,

    /// At most this many branches and steps are at work at once [default: 64].
    #[arg(long, value_name = "NUMBER", env = "UNANIMITY_CAPACITY")]
    pub capacity: Option<NonZeroU32>,

    /// The journal: a file of this agent alone, which is made where it is missing.
    #[arg(long, value_name = "FILE", env = "UNANIMITY_JOURNAL")]
    pub journal: Option<PathBuf>,

    /// How long the journal remembers what has ended: seconds, or a number with s, m, h, d or w [default: 7d].
    #[arg(long, value_name = "TIME", env = "UNANIMITY_JOURNAL_RETENTION")]
    pub journal_retention: Option<Retention>,

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

/// What an agent around a service is started with.
#[derive(Clone)]
pub struct HttpConfig {
    /// The participant's name.
    pub name: String,
    /// Where the coordinator listens.
    pub coordinator: String,
    /// The way to the service.
    pub service: ServiceConfig,
    /// At most this many branches and steps are at work at once.
    pub capacity: NonZeroU32,
    /// The journal's file.
    pub journal: PathBuf,
    /// How long the journal remembers what has ended.
    pub journal_retention: Duration,
    /// The operations that the service offers.
    pub operations: Operations,
    /// Certificates, for an `https` coordinator.
    pub tls: Option<Tls>,
}

/// The way to the service; where to, each [`super::Endpoint`] knows.
#[derive(Clone, Default)]
pub struct ServiceConfig {
    /// Over TLS.
    pub encrypted: bool,
    /// The authority that is trusted, PEM; without one, the system's are.
    pub authority: Option<Vec<u8>>,
    /// Sent with each request.
    pub headers: HeaderMap,
}

/// Without what is secret.
impl fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConfig")
            .field("name", &self.name)
            .field("coordinator", &self.coordinator)
            .finish_non_exhaustive()
    }
}

impl HttpConfig {
    /// Reads the file that `arguments` name, if any, and lays the arguments over it.
    ///
    /// # Errors
    /// Where a file can't be read, a key is unknown, or a setting is missing or makes no sense.
    pub fn load(arguments: HttpArguments) -> Result<Self, ConfigError> {
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

    fn merge(arguments: HttpArguments, file: File) -> Result<Self, ConfigError> {
        let tls = tls(
            arguments.coordinator_ca.or(file.coordinator_ca),
            arguments
                .coordinator_certificate
                .or(file.coordinator_certificate),
            arguments.coordinator_key.or(file.coordinator_key),
        )?;
        let service = arguments
            .service
            .or(file.service)
            .ok_or(ConfigError::Setting(
                "there is no service; give --service, UNANIMITY_SERVICE, or service in the file",
            ))?;
        let (base, encrypted) = base(&service)?;
        let authority = arguments.service_ca.or(file.service_ca);
        let headers = arguments.header_file.or(file.header_file);
        let retention = arguments.journal_retention.or(file.journal_retention);
        Ok(Self {
            name: arguments.name.or(file.name).ok_or(ConfigError::Setting(
                "the participant has no name; give --name, UNANIMITY_PARTICIPANT, or name in the file",
            ))?,
            coordinator: arguments.coordinator.or(file.coordinator).unwrap_or_else(|| DEFAULT_COORDINATOR.into()),
            service: ServiceConfig {
                encrypted,
                authority: authority
                    .map(|path| fs::read(&path).map_err(|source| ConfigError::Read { path, source }))
                    .transpose()?,
                headers: headers.as_deref().map(headers_of).transpose()?.unwrap_or_default(),
            },
            capacity: arguments.capacity.or(file.capacity).unwrap_or(DEFAULT_CAPACITY),
            journal: arguments.journal.or(file.journal).ok_or(ConfigError::Setting(
                "there is no journal; give --journal, UNANIMITY_JOURNAL, or journal in the file: a file that outlives the agent",
            ))?,
            journal_retention: retention.map_or(DEFAULT_JOURNAL_RETENTION, |retention| retention.0),
            operations: Operations::from_config(&base, file.operation)?,
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
    service: Option<String>,
    service_ca: Option<PathBuf>,
    header_file: Option<PathBuf>,
    capacity: Option<NonZeroU32>,
    journal: Option<PathBuf>,
    journal_retention: Option<Retention>,
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
            &mut self.service_ca,
            &mut self.header_file,
            &mut self.journal,
            &mut self.coordinator_ca,
            &mut self.coordinator_certificate,
            &mut self.coordinator_key,
        ];
        for path in paths.into_iter().flatten() {
            *path = directory.join(&path);
        }
    }
}

/// The address that leads all endpoints, without a slash at its end, and whether it is TLS.
fn base(service: &str) -> Result<(String, bool), ConfigError> {
    let uri: Option<Uri> = service.parse().ok();
    let fits = |uri: &Uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none()
            && !service.contains(['@', '#'])
    };
    let uri = uri.filter(fits).ok_or(ConfigError::Setting(
        "service: expected http://HOST:PORT or https://HOST, and perhaps a path; credentials go into header_file",
    ))?;
    let encrypted = uri.scheme_str() == Some("https");
    Ok((service.trim_end_matches('/').to_owned(), encrypted))
}

/// Headers that are the agent's own to set, or the connection's.
const TAKEN: [&str; 9] = [
    "accept",
    "connection",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "te",
    "traceparent",
    "transfer-encoding",
];

fn headers_of(path: &Path) -> Result<HeaderMap, ConfigError> {
    let text = fs::read_to_string(path)
        .map_err(|error| ConfigError::HeaderFile(format!("can't be read: {error}")))?;
    let mut headers = HeaderMap::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let (name, value) = header(line).ok_or_else(|| {
            ConfigError::HeaderFile(format!(
                "has no header in line {}; expected a line such as: Authorization: Bearer …",
                index + 1
            ))
        })?;
        if TAKEN.contains(&name.as_str()) {
            return Err(ConfigError::HeaderFile(format!(
                "sets {name} in line {}, which the agent sets",
                index + 1
            )));
        }
        headers.append(name, value);
    }
    if headers.is_empty() {
        return Err(ConfigError::HeaderFile("holds no header".into()));
    }
    Ok(headers)
}

fn header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    let mut value = HeaderValue::from_str(value.trim()).ok()?;
    value.set_sensitive(true);
    Some((name.trim().parse().ok()?, value))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test reports")]
mod tests {
    use super::*;

    fn load(text: &str, arguments: HttpArguments) -> Result<HttpConfig, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        for (name, text) in [
            ("header", "Authorization: Bearer hunter2\n\nX-Tenant: 7\n"),
            ("bare", "hunter2"),
            ("taken", "Host: hunter2"),
            ("broken", "Authorization: hunter\x012"),
            ("empty", "\n"),
        ] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        HttpConfig::load(HttpArguments {
            config: Some(path),
            ..arguments
        })
    }

    const GOOD: &str = "name = 'a'\nservice = 'http://h:1/api/'\njournal = 'j'\n";
    const OPERATION: &str = "\n[operation.charge]\nexecute = '/charge'\n";

    fn refusal(text: &str) -> String {
        let refused = load(text, HttpArguments::default()).unwrap_err();
        let text = refused.to_string();
        assert!(!text.contains("hunter2"), "{text}");
        text
    }

    #[test]
    fn the_example_is_a_good_configuration() {
        let config = load(EXAMPLE, HttpArguments::default()).unwrap();
        assert_eq!(
            (
                config.name.as_str(),
                config.capacity,
                config.journal_retention
            ),
            ("payments", DEFAULT_CAPACITY, DEFAULT_JOURNAL_RETENTION)
        );
        assert!(config.operations.settle_steps());
        let charge = config.operations.named("charge").unwrap();
        let two_phase = charge.two_phase.as_ref().unwrap();
        assert_eq!(two_phase.prepare.uri(), "http://127.0.0.1:8080/charge/try");
    }

    #[test]
    fn arguments_win_over_the_file_and_the_file_over_defaults() {
        let text = format!(
            "{GOOD}capacity = 7\njournal_retention = 60\nheader_file = 'header'\n{OPERATION}"
        );
        let config = load(&text, HttpArguments::default()).unwrap();
        assert_eq!(
            (config.capacity.get(), config.journal_retention.as_secs()),
            (7, 60)
        );
        assert!(config.journal.is_absolute());
        assert_eq!(config.coordinator, DEFAULT_COORDINATOR);
        assert_eq!(config.service.headers["authorization"], "Bearer hunter2");
        assert_eq!(config.service.headers["x-tenant"], "7");
        assert!(!format!("{config:?} {:?}", config.service.headers).contains("hunter2"));

        let arguments = HttpArguments {
            name: Some("flag".into()),
            service: Some("https://flag".into()),
            capacity: NonZeroU32::new(9),
            journal: Some("flag".into()),
            journal_retention: "2w".parse().ok(),
            coordinator: Some("http://there:1".into()),
            ..HttpArguments::default()
        };
        let config = load(&text, arguments).unwrap();
        assert_eq!((config.name.as_str(), config.capacity.get()), ("flag", 9));
        assert_eq!(config.coordinator, "http://there:1");
        assert_eq!(config.journal, Path::new("flag"));
        assert_eq!(config.journal_retention.as_secs(), 1_209_600);
        assert!(config.service.encrypted);
        let charge = config.operations.named("charge").unwrap();
        assert_eq!(
            charge.execute.as_ref().unwrap().uri(),
            "https://flag/charge"
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_key() {
        let service =
            |value: &str| format!("name = 'a'\njournal = 'j'\nservice = '{value}'\n{OPERATION}");
        let header = |file: &str| format!("{GOOD}header_file = '{file}'\n{OPERATION}");
        for (text, expected) in [
            (
                format!("service = 'http://h'\njournal = 'j'\n{OPERATION}"),
                "--name",
            ),
            (
                format!("name = 'a'\njournal = 'j'\n{OPERATION}"),
                "--service",
            ),
            (
                format!("name = 'a'\nservice = 'http://h'\n{OPERATION}"),
                "--journal",
            ),
            (GOOD.into(), "[operation.NAME]"),
            (service("hunter2"), "service: expected"),
            (service("ftp://hunter2"), "service: expected"),
            (service("http://u:hunter2@h"), "service: expected"),
            (service("http://h/?token=hunter2"), "service: expected"),
            (service("http://"), "service: expected"),
            (header("bare"), "header_file has no header in line 1"),
            (header("broken"), "header_file has no header in line 1"),
            (header("taken"), "header_file sets host"),
            (header("empty"), "header_file holds no header"),
            (header("Bearer hunter2"), "header_file can't be read"),
            (
                format!("{GOOD}capacity = 0\n{OPERATION}"),
                "line 4: capacity: expected a nonzero",
            ),
            (
                format!("{GOOD}capacity = 'hunter2'\n"),
                "line 4: capacity: expected",
            ),
            (
                format!("{GOOD}capcity = 3\n"),
                "line 4: unknown field `capcity`",
            ),
            (
                format!("{GOOD}{OPERATION}exec = '/'\n"),
                "unknown field `exec`",
            ),
            (
                format!("{GOOD}{OPERATION}parameters = 'hunter2'\n"),
                "operation.charge.parameters: expected",
            ),
            (
                format!("{GOOD}{OPERATION}confirm = '/c'\n"),
                "operation charge: prepare, confirm",
            ),
            (
                format!("{GOOD}service_ca = '/nowhere'\n{OPERATION}"),
                "/nowhere",
            ),
            (
                format!("{GOOD}coordinator_key = 'k'\n{OPERATION}"),
                "go together",
            ),
            (
                format!("{GOOD}coordinator = 'https://h'\n{OPERATION}"),
                "authority",
            ),
        ] {
            let refused = refusal(&text);
            assert!(refused.contains(expected), "{text}: {refused}");
        }
    }
}
