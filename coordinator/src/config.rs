//! The settings, merged from flags, environment, file and defaults, and checked once.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::Deserialize;
use unanimity_engine::Settings;

use crate::{
    arguments::Arguments,
    request::{Timeout, Timeouts},
};

/// 7420 is the coordinator's usual port.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7420);
/// A transaction's operations must fit into one message, with room for what is around them.
const PAYLOAD_BYTES: usize = 4 << 20;
/// The smallest segment: a decision of a transaction with very many branches must fit with room to spare.
const SEGMENT_MIN: u64 = 1 << 20;
/// The log's own bound.
const SEGMENT_MAX: u64 = 1 << 30;

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// Where the log is.
    pub data_directory: PathBuf,
    /// `None`: no TLS.
    pub tls: Option<Tls>,
    /// Milliseconds and so on: a transaction's time where its request names none.
    pub timeout_default: Duration,
    /// The longest that a request may name.
    pub timeout_max: Duration,
    /// A saga's time, until it turns back, where its request names none.
    pub saga_timeout_default: Duration,
    /// The longest that its request may name; also for the wait for its locks.
    pub saga_timeout_max: Duration,
    /// How long to wait at the end for transactions in flight.
    pub drain_timeout: Duration,
    /// The engine's bounds and times.
    pub limits: Settings,
    /// The size of a log segment.
    pub segment_bytes: u64,
    /// Gets the address once the coordinator serves.
    pub ready_file: Option<PathBuf>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which are shown.
    pub log_filter: String,
}

/// PEM files for TLS.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The chain to show.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Peers must have a certificate of this authority.
    pub client_authority: Option<PathBuf>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A span of time as people write it: `250ms`, `30s`, `5m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

/// The settings can't be used: why, and how to mend them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<SocketAddr>,
    data_directory: Option<PathBuf>,
    insecure_listen: Option<bool>,
    tls: Option<Tls>,
    timeout_default: Option<Span>,
    timeout_max: Option<Span>,
    saga_timeout_default: Option<Span>,
    saga_timeout_max: Option<Span>,
    drain_timeout: Option<Span>,
    segment_bytes: Option<u64>,
    ready_file: Option<PathBuf>,
    log_format: Option<LogFormat>,
    log_filter: Option<String>,
    #[serde(default)]
    limits: Limits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    max_in_flight: Option<usize>,
    max_branches: Option<usize>,
    max_payload_bytes: Option<usize>,
    retention: Option<Span>,
    max_remembered: Option<usize>,
    scan_interval: Option<Span>,
    retry_min: Option<Span>,
    retry_max: Option<Span>,
}

impl Config {
    /// The defaults, with the log in this directory.
    pub fn new(data_directory: impl Into<PathBuf>) -> Self {
        Config {
            listen: LISTEN,
            data_directory: data_directory.into(),
            tls: None,
            timeout_default: Duration::from_secs(30),
            timeout_max: Duration::from_secs(3_600),
            saga_timeout_default: Duration::from_secs(3_600),
            saga_timeout_max: Duration::from_secs(30 * 24 * 3_600),
            drain_timeout: Duration::from_secs(10),
            limits: Settings::default(),
            segment_bytes: 64 << 20,
            ready_file: None,
            log_format: LogFormat::Text,
            log_filter: "info".into(),
        }
    }

    /// Reads the file that the arguments name, if any, and lays the arguments over it.
    ///
    /// # Errors
    /// [`ConfigError`], which names the setting and says what would do.
    pub fn load(arguments: &Arguments) -> Result<Self, ConfigError> {
        let file = match &arguments.config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        let data_directory = arguments.data_directory.clone().or(file.data_directory.clone()).ok_or_else(|| {
            ConfigError(
                "data_directory is not set; give --data-directory DIRECTORY, set UNANIMITY_DATA_DIRECTORY, or put it into the file"
                    .into(),
            )
        })?;
        let insecure = arguments
            .insecure_listen
            .or(file.insecure_listen)
            .unwrap_or(false);
        let config = Config::new(data_directory).overlaid(arguments, file)?;
        config.check(insecure)?;
        Ok(config)
    }

    fn overlaid(self, arguments: &Arguments, file: File) -> Result<Self, ConfigError> {
        let span = |argument: Option<Span>, file: Option<Span>, default| {
            argument.or(file).map_or(default, |span| span.0)
        };
        let limits = limits(arguments, &file.limits, self.limits)?;
        Ok(Config {
            listen: arguments.listen.or(file.listen).unwrap_or(self.listen),
            tls: tls(arguments, file.tls)?,
            timeout_default: span(
                arguments.timeout_default,
                file.timeout_default,
                self.timeout_default,
            ),
            timeout_max: span(arguments.timeout_max, file.timeout_max, self.timeout_max),
            saga_timeout_default: span(
                arguments.saga_timeout_default,
                file.saga_timeout_default,
                self.saga_timeout_default,
            ),
            saga_timeout_max: span(
                arguments.saga_timeout_max,
                file.saga_timeout_max,
                self.saga_timeout_max,
            ),
            drain_timeout: span(
                arguments.drain_timeout,
                file.drain_timeout,
                self.drain_timeout,
            ),
            limits,
            segment_bytes: arguments
                .segment_bytes
                .or(file.segment_bytes)
                .unwrap_or(self.segment_bytes),
            ready_file: arguments.ready_file.clone().or(file.ready_file),
            log_format: arguments.log_format.or(file.log_format).unwrap_or_default(),
            log_filter: arguments
                .log_filter
                .clone()
                .or(file.log_filter)
                .unwrap_or(self.log_filter),
            data_directory: self.data_directory,
        })
    }

    fn check(&self, insecure: bool) -> Result<(), ConfigError> {
        let refuse = |problem: String| Err(ConfigError(problem));
        if self.tls.is_none() && !self.listen.ip().is_loopback() && !insecure {
            return refuse(format!(
                "listen: {} can be reached from other machines, and TLS is off; set tls.certificate and tls.key, listen on 127.0.0.1, \
                 or give --insecure-listen if the network keeps strangers out",
                self.listen
            ));
        }
        for (name, default, max) in [
            ("timeout", self.timeout_default, self.timeout_max),
            (
                "saga_timeout",
                self.saga_timeout_default,
                self.saga_timeout_max,
            ),
        ] {
            if default.is_zero() || default > max {
                return refuse(format!(
                    "{name}_default: is {default:?}, but must be longer than 0 s and at most {name}_max, which is {max:?}"
                ));
            }
        }
        let segment = self.segment_bytes;
        if !(SEGMENT_MIN..=SEGMENT_MAX).contains(&segment) || !segment.is_multiple_of(512) {
            return refuse(format!(
                "segment_bytes: is {segment}, but must be a multiple of 512 from {SEGMENT_MIN} to {SEGMENT_MAX}"
            ));
        }
        if self.limits.max_payload_bytes > PAYLOAD_BYTES {
            return refuse(format!(
                "max_payload_bytes: is {}, but at most {PAYLOAD_BYTES} fits into a message",
                self.limits.max_payload_bytes
            ));
        }
        let limits = &self.limits;
        for (name, number) in [
            ("max_in_flight", limits.max_in_flight),
            ("max_branches", limits.max_branches),
            ("max_payload_bytes", limits.max_payload_bytes),
            ("scan_interval", limits.scan_interval_ms as usize),
            ("retry_min", limits.retry_min_ms as usize),
        ] {
            if number == 0 {
                return refuse(format!("{name}: must be more than 0"));
            }
        }
        if limits.retry_min_ms > limits.retry_max_ms {
            return refuse(format!(
                "retry_min: is {} ms, but retry_max is {} ms",
                limits.retry_min_ms, limits.retry_max_ms
            ));
        }
        Ok(())
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        let timeout = |default, max| Timeout { default, max };
        Timeouts {
            transaction: timeout(self.timeout_default, self.timeout_max),
            saga: timeout(self.saga_timeout_default, self.saga_timeout_max),
            // Who holds the lock may hold it for as long as a saga may take.
            lock: timeout(
                self.timeout_default.min(self.saga_timeout_max),
                self.saga_timeout_max,
            ),
        }
    }
}

impl File {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|error| {
            ConfigError(format!(
                "the configuration {} can't be read: {error}",
                path.display()
            ))
        })?;
        Self::parse(&text).map_err(|problem| {
            ConfigError(format!("the configuration {}, {problem}", path.display()))
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let line = |error: &toml::de::Error| {
            error
                .span()
                .map_or(1, |span| 1 + text[..span.start].matches('\n').count())
        };
        let document = toml::Deserializer::parse(text)
            .map_err(|error| format!("line {}: {}", line(&error), error.message()))?;
        serde_path_to_error::deserialize(document).map_err(|error| {
            let problem = problem(&error.path().to_string(), error.inner().message());
            format!("line {}: {problem}", line(error.inner()))
        })
    }
}

/// What is wrong with the key, without its value, which may be a secret in the wrong place. serde's texts quote the value first, and then say
/// what was expected; those about fields quote only the field.
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

/// Each of the three files may come from another place.
fn tls(arguments: &Arguments, file: Option<Tls>) -> Result<Option<Tls>, ConfigError> {
    let (certificate, key, authority) = match file {
        Some(tls) => (Some(tls.certificate), Some(tls.key), tls.client_authority),
        None => (None, None, None),
    };
    let certificate = arguments.tls_certificate.clone().or(certificate);
    let key = arguments.tls_key.clone().or(key);
    let client_authority = arguments.tls_client_authority.clone().or(authority);
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(Tls {
            certificate,
            key,
            client_authority,
        })),
        (None, None) if client_authority.is_none() => Ok(None),
        _ => Err(ConfigError(
            "tls: certificate and key go together, and client_authority goes with them".into(),
        )),
    }
}

fn limits(
    arguments: &Arguments,
    file: &Limits,
    default: Settings,
) -> Result<Settings, ConfigError> {
    let ms = |name: &str, argument: Option<Span>, file: Option<Span>, default: u64| match argument
        .or(file)
    {
        None => Ok(default),
        Some(span) => u64::try_from(span.0.as_millis())
            .map_err(|_| ConfigError(format!("{name}: is too long"))),
    };
    Ok(Settings {
        max_in_flight: arguments
            .max_in_flight
            .or(file.max_in_flight)
            .unwrap_or(default.max_in_flight),
        max_branches: arguments
            .max_branches
            .or(file.max_branches)
            .unwrap_or(default.max_branches),
        max_payload_bytes: arguments
            .max_payload_bytes
            .or(file.max_payload_bytes)
            .unwrap_or(default.max_payload_bytes),
        max_saga_bytes: default.max_saga_bytes,
        retention_ms: ms(
            "retention",
            arguments.retention,
            file.retention,
            default.retention_ms,
        )?,
        max_remembered: arguments
            .max_remembered
            .or(file.max_remembered)
            .unwrap_or(default.max_remembered),
        scan_interval_ms: ms(
            "scan_interval",
            arguments.scan_interval,
            file.scan_interval,
            default.scan_interval_ms,
        )?,
        retry_min_ms: ms(
            "retry_min",
            arguments.retry_min,
            file.retry_min,
            default.retry_min_ms,
        )?,
        retry_max_ms: ms(
            "retry_max",
            arguments.retry_max,
            file.retry_max,
            default.retry_max_ms,
        )?,
    })
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let ms_per_unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => 0,
        };
        let ms = number
            .parse::<u64>()
            .ok()
            .filter(|_| ms_per_unit > 0)
            .and_then(|n| n.checked_mul(ms_per_unit));
        ms.map(|ms| Span(Duration::from_millis(ms))).ok_or_else(|| {
            "expected a span of time: a whole number and ms, s, m or h, as in 30s".into()
        })
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
