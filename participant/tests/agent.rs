//! The agent's command line, as a process.

use std::{
    fs,
    process::{Command, Output},
};

fn agent(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unanimity-participant"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .expect("the agent starts")
}

/// Standard error of an agent that must stop with exit code 1.
fn refusal(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = agent(arguments, environment);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    text
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("agent.toml");
    // Certificates that are not there show which one was taken.
    fs::write(
        &file,
        "name = \"a\"\ndatabase = \"sqlite://a.db\"\ncoordinator_ca = \"/nowhere/FILE\"\n",
    )
    .expect("written");
    let file = file.to_str().expect("a plain path");
    let environment = ("UNANIMITY_COORDINATOR_CA", "/nowhere/ENVIRONMENT");
    let check = |arguments: &[&str], environment: &[(&str, &str)], expected: &str| {
        let refused = refusal(
            &[&["sql", "--config", file], arguments].concat(),
            environment,
        );
        assert!(refused.contains(expected), "{expected}: {refused}");
    };
    check(&[], &[], "FILE");
    check(&[], &[environment], "ENVIRONMENT");
    check(
        &["--coordinator-ca", "/nowhere/FLAG"],
        &[environment],
        "FLAG",
    );
}

#[test]
fn a_database_that_will_never_do_ends_the_agent_with_a_remedy() {
    let refused = refusal(
        &[
            "sql",
            "--name",
            "a",
            "--database",
            "oracle://hunter2@host/db",
        ],
        &[],
    );
    assert!(
        refused.starts_with("error: ") && refused.contains("postgres://"),
        "{refused}"
    );
    assert!(!refused.contains("hunter2"), "{refused}");
}

#[test]
fn an_unknown_key_ends_the_agent_by_its_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("agent.toml");
    fs::write(&file, "nme = \"a\"\n").expect("written");
    let refused = refusal(
        &["sql", "--config", file.to_str().expect("a plain path")],
        &[],
    );
    assert!(
        refused.contains("agent.toml, line 1: unknown field `nme`"),
        "{refused}"
    );
}

#[test]
fn the_help_shows_a_configuration_and_no_secret() {
    let output = agent(
        &["sql", "--help"],
        &[("UNANIMITY_DATABASE", "postgres://u:hunter2@h/d")],
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success()
            && text.contains("[operation.debit]")
            && text.contains("UNANIMITY_DATABASE"),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
}
