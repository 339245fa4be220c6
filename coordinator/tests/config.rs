//! Settings: what wins over what, and what is refused.

use std::{fs, path::PathBuf, time::Duration};

use clap::Parser as _;
use unanimity_coordinator::{Arguments, Config};

fn arguments(given: &[&str]) -> Arguments {
    Arguments::try_parse_from([&["unanimity-coordinator"], given].concat()).expect("arguments")
}

/// Loads a file with these lines, under these further arguments.
fn load(lines: &str, given: &[&str]) -> Result<Config, String> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("coordinator.toml");
    fs::write(&path, lines).expect("written");
    let path = path.to_str().expect("a path").to_owned();
    Config::load(&arguments(&[&["--config", path.as_str()], given].concat()))
        .map_err(|error| error.to_string())
}

#[test]
fn a_flag_wins_over_the_file_which_wins_over_the_default() {
    let file = "data_directory = '/a'\nlisten = '127.0.0.1:1'\ntimeout_default = '5s'\n[limits]\nmax_branches = 7\nretention = '2h'\n";
    let config = load(file, &["--listen", "127.0.0.1:2", "--max-branches", "8"]).expect("settings");
    assert_eq!(config.listen.port(), 2);
    assert_eq!(config.limits.max_branches, 8);
    assert_eq!(config.data_directory, PathBuf::from("/a"));
    assert_eq!(config.timeout_default, Duration::from_secs(5));
    assert_eq!(config.limits.retention_ms, 7_200_000);
    assert_eq!(config.timeout_max, Duration::from_secs(3_600));
}

#[test]
fn the_environment_is_read_by_every_long_flag() {
    for argument in <Arguments as clap::CommandFactory>::command().get_arguments() {
        let Some(long) = argument
            .get_long()
            .filter(|long| !["help", "version"].contains(long))
        else {
            continue;
        };
        let wanted = match long {
            "log-filter" => "UNANIMITY_LOG".to_owned(),
            other => format!("UNANIMITY_{}", other.replace('-', "_").to_uppercase()),
        };
        assert_eq!(
            argument.get_env().and_then(|name| name.to_str()),
            Some(wanted.as_str())
        );
        assert!(argument.get_help().is_some(), "{long} explains itself");
    }
}

#[test]
fn what_can_not_be_used_is_refused_by_its_name() {
    let cases: &[(&str, &[&str], &str)] = &[
        ("", &[], "data_directory"),
        (
            "data_directory = '/a'\nlissten = '127.0.0.1:1'",
            &[],
            "lissten",
        ),
        (
            "data_directory = '/a'\n[limits]\nmax_brnches = 1",
            &[],
            "max_brnches",
        ),
        (
            "data_directory = '/a'\n[tls]\ncertificate = 'c'",
            &[],
            "key",
        ),
        ("data_directory = '/a'", &["--tls-key", "k"], "tls"),
        (
            "data_directory = '/a'\ntimeout_default = '2h'",
            &[],
            "timeout_default",
        ),
        (
            "data_directory = '/a'\ntimeout_default = '0s'",
            &[],
            "timeout_default",
        ),
        (
            "data_directory = '/a'\nsaga_timeout_max = '5m'",
            &[],
            "saga_timeout_default",
        ),
        (
            "data_directory = '/a'\ndrain_timeout = 'soon'",
            &[],
            "span of time",
        ),
        (
            "data_directory = '/a'\nsegment_bytes = 1000",
            &[],
            "segment_bytes",
        ),
        (
            "data_directory = '/a'\n[limits]\nmax_payload_bytes = 5000000",
            &[],
            "max_payload_bytes",
        ),
        (
            "data_directory = '/a'\n[limits]\nmax_in_flight = 0",
            &[],
            "max_in_flight",
        ),
        (
            "data_directory = '/a'\n[limits]\nretry_min = '1m'",
            &[],
            "retry_min",
        ),
    ];
    for (lines, given, name) in cases {
        let error = load(lines, given).expect_err(lines);
        assert!(error.contains(name), "{lines}: {error}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_refused_by_its_key_and_line_and_never_shown() {
    for key in [
        "listen",
        "insecure_listen",
        "tls",
        "tls.certificate",
        "timeout_default",
        "segment_bytes",
        "log_format",
        "limits",
        "limits.max_branches",
        "limits.retention",
    ] {
        let value = match key {
            "tls.certificate" => "[\"hunter2\"]",
            _ => "\"hunter2, expected hunter2\"",
        };
        let error = load(&format!("\n{key} = {value}\n"), &[]).expect_err(key);
        assert!(error.contains(&format!("line 2: {key}: ")), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let error = load("log_filter = hunter2\n", &[]).expect_err("no TOML");
    assert!(
        error.contains("line 1") && !error.contains("hunter2"),
        "{error}"
    );
}

#[test]
fn an_address_that_others_can_reach_needs_tls_or_a_word() {
    let open = "data_directory = '/a'\nlisten = '0.0.0.0:7420'";
    let error = load(open, &[]).expect_err("refused");
    assert!(
        error.contains("--insecure-listen") && error.contains("tls.certificate"),
        "{error}"
    );
    assert!(load(open, &["--insecure-listen"]).is_ok());
    assert!(load(open, &["--tls-certificate", "c", "--tls-key", "k"]).is_ok());
    assert!(load("data_directory = '/a'\nlisten = '[::1]:7420'", &[]).is_ok());
}

#[test]
fn a_missing_file_is_told_with_its_path() {
    let error =
        Config::load(&arguments(&["--config", "/nowhere/at/all.toml"])).expect_err("refused");
    assert!(error.to_string().contains("/nowhere/at/all.toml"));
}
