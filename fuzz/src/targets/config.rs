//! Configuration files.

use std::{fs, path::Path};

use unanimity_coordinator as coordinator;
use unanimity_participant::{config as sql, http};

use crate::{Target, scratch};

pub(super) const COORDINATOR_CONFIG: Target = Target {
    name: "coordinator_config",
    promise: "any file is taken or refused, with a reason that shows no value of it",
    check: |bytes| check(bytes, read_coordinator),
    seeds: || seeds(COORDINATOR),
};

pub(super) const SQL_CONFIG: Target = Target {
    name: "sql_config",
    promise: "any file is taken or refused, with a reason that shows no value of it",
    check: |bytes| check(bytes, read_sql),
    seeds: || seeds(sql::EXAMPLE),
};

pub(super) const HTTP_CONFIG: Target = Target {
    name: "http_config",
    promise: "any file is taken or refused, with a reason that shows no value of it",
    check: |bytes| check(bytes, read_http),
    seeds: || seeds(http::EXAMPLE),
};

const COORDINATOR: &str = r#"listen = "127.0.0.1:7420"
data_directory = "/var/lib/unanimity"
insecure_listen = false
timeout_default = "30s"
drain_timeout = "250ms"
segment_bytes = 67108864
log_format = "json"
log_filter = "info"

[tls]
certificate = "c.pem"
key = "k.pem"

[limits]
max_in_flight = 1000
retention = "1h"
retry_min = "5m"
"#;

/// Stands in the place of a password.
const SECRET: &str = "hunter2hunter2";

type Read = fn(&Path) -> Result<(), String>;

/// The first byte says where the secret goes: in the place of the value in one of the lines.
fn check(bytes: &[u8], read: Read) {
    let Some((line, bytes)) = bytes.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let directory = scratch::directory();
    let path = directory.path().join("config.toml");
    let load = |text: &str| {
        fs::write(&path, text).expect("scratch files can be written");
        read(&path)
    };
    if let Err(problem) = load(text) {
        assert!(!problem.is_empty());
    }
    if let Err(problem) = load(&with_secret(text, usize::from(*line))) {
        assert!(!problem.contains(SECRET), "a value is shown: {problem}");
    }
}

/// Replaces the value behind the equals sign, unless the line has none.
fn with_secret(text: &str, line: usize) -> String {
    let replaced = |(at, text): (usize, &str)| match text.split_once('=') {
        Some((key, _)) if at == line => format!("{key}= \"{SECRET}\""),
        _ => text.to_owned(),
    };
    let lines: Vec<_> = text.lines().enumerate().map(replaced).collect();
    lines.join("\n")
}

/// The secret in each line, and in none.
fn seeds(text: &str) -> Vec<Vec<u8>> {
    let lines = 0..=u8::try_from(text.lines().count()).expect("an example is short");
    lines
        .map(|line| [&[line], text.as_bytes()].concat())
        .collect()
}

fn read_coordinator(path: &Path) -> Result<(), String> {
    let arguments = coordinator::Arguments {
        config: Some(path.into()),
        ..coordinator::Arguments::default()
    };
    let config = coordinator::Config::load(&arguments).map_err(|error| error.to_string())?;
    assert!(config.timeout_default <= config.timeout_max);
    assert!(config.listen.ip().is_loopback() || config.tls.is_some() || is_insecure(path));
    Ok(())
}

fn is_insecure(path: &Path) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.contains("insecure_listen")
}

fn read_sql(path: &Path) -> Result<(), String> {
    let arguments = sql::SqlArguments {
        config: Some(path.into()),
        ..sql::SqlArguments::default()
    };
    let config = sql::Config::load(arguments).map_err(|error| error.to_string())?;
    let elsewhere = config.name.contains(SECRET) || config.coordinator.contains(SECRET);
    assert!(elsewhere || !format!("{config:?}").contains(SECRET));
    Ok(())
}

fn read_http(path: &Path) -> Result<(), String> {
    let arguments = http::HttpArguments {
        config: Some(path.into()),
        ..http::HttpArguments::default()
    };
    let read = http::HttpConfig::load(arguments);
    read.map(drop).map_err(|error| error.to_string())
}
