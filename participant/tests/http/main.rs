//! The agent around a service, against services that do what services do: refuse, hang, break off, show a login page.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

#[path = "../session/coordinator.rs"]
#[allow(
    dead_code,
    reason = "the session's tests need more of it than these do"
)]
mod coordinator;
mod encrypted;
mod example;
mod process;
mod steps;
mod two_phase;

use std::{fs, path::Path, time::Duration};

use tempfile::TempDir;
use unanimity_participant::{
    http::{HttpAgent, HttpArguments, HttpConfig},
    participant::{BranchId, Prepare},
};
use unanimity_proto::v1::{self, operation::Statement, value::Kind};
use unanimity_tests::service::Service;

/// Far more than anything here takes, but for what is meant to.
const LONG: Duration = Duration::from_secs(20);

const OPERATIONS: &str = r#"
    [operation.charge]
    parameters = [{ name = "card", type = "text" }, { name = "cents", type = "integer" }]
    prepare = "/try"
    confirm = "/confirm"
    cancel = "/cancel"
    execute = "/execute"
    compensate = "/compensate"
    settle = "/settle"

    [operation.stamp]
    prepare = "/stamp/try"
    confirm = "/stamp/confirm"
    cancel = "/stamp/cancel"

    [operation.refund]
    compensate = "/refund"
"#;

/// A service, and an agent with a journal.
struct Pair {
    service: Service,
    agent: HttpAgent,
    directory: TempDir,
}

impl Pair {
    async fn start() -> Self {
        let service = Service::start().await;
        let directory = tempfile::tempdir().unwrap();
        Self {
            agent: agent(&format!("http://{}", service.address), directory.path()).await,
            service,
            directory,
        }
    }

    /// As a crash would, for the journal is synced at each call; only that the file's lock is free at once.
    async fn restart(self) -> Self {
        let Self {
            service,
            agent: old,
            directory,
        } = self;
        drop(old);
        Self {
            agent: agent(&format!("http://{}", service.address), directory.path()).await,
            service,
            directory,
        }
    }
}

/// Writes the configuration file of an agent, and says where it is.
fn configure(directory: &Path, more: &str) -> std::path::PathBuf {
    let file = directory.join("agent.toml");
    let text = format!("name = \"payments\"\njournal = \"journal\"\n{more}\n{OPERATIONS}");
    fs::write(&file, text).unwrap();
    file
}

async fn agent(service: &str, directory: &Path) -> HttpAgent {
    let arguments = HttpArguments {
        config: Some(configure(directory, "")),
        service: Some(service.into()),
        ..HttpArguments::default()
    };
    let config = HttpConfig::load(arguments).unwrap();
    HttpAgent::open(&config).await.unwrap()
}

fn branch(number: u32) -> BranchId {
    BranchId {
        transaction: "u1.0a1b2c3d.1.0198f0a0b1c27d3e8f90a1b2c3d4e5f6".into(),
        number,
    }
}

fn operation(name: &str) -> v1::Operation {
    v1::Operation {
        statement: Some(Statement::Name(name.into())),
        ..v1::Operation::default()
    }
}

fn charge() -> v1::Operation {
    let value = |kind| v1::Value { kind: Some(kind) };
    v1::Operation {
        parameters: [
            ("card".into(), value(Kind::Text("4711".into()))),
            ("cents".into(), value(Kind::Integer(250))),
        ]
        .into(),
        ..operation("charge")
    }
}

fn prepare(number: u32, operations: impl Into<Vec<v1::Operation>>) -> Prepare {
    Prepare {
        branch: branch(number),
        continued: false,
        operations: operations.into(),
        one_phase: false,
        request_id: String::new(),
        timeout: LONG,
        traceparent: String::new(),
    }
}
