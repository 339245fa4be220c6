//! A client in another language: Python with grpcio, made from the .proto files alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::LazyLock,
};

use serde_json::Value;
use unanimity_tests::{
    bank::{Bank, INITIAL_BALANCE},
    system::{Agent, Coordinator, Scratch},
};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests lie in the repository")
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("it can be run");
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

/// Python in a virtual environment with what the client needs. It is kept in the target directory, and made anew when the requirements change.
static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| {
    let requirements = repository().join("tests/python/requirements.txt");
    let wanted = fs::read_to_string(&requirements).expect("it is there");
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let (python, stamp) = (environment.join("bin/python"), environment.join("made-for"));
    if fs::read_to_string(&stamp).is_ok_and(|made_for| made_for == wanted) {
        return python;
    }
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&environment));
    run(Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
        ])
        .arg(&requirements));
    fs::write(stamp, wanted).expect("the directory is ours");
    python
});

/// Runs the client; its exit code, and the object that it prints.
fn client(arguments: &[&str]) -> (Option<i32>, Value) {
    let output = Command::new(&*PYTHON)
        .arg(repository().join("tests/python/client.py"))
        .args(arguments)
        .output()
        .expect("it can be run");
    let printed = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), printed)
}

#[test]
fn a_python_client_says_how_long_ago_it_first_sent_a_request() {
    let script = r#"
import client

class Stub:
    def SubmitTransaction(self, request, timeout):
        return request.age.ToNanoseconds() if request.HasField("age") else None

attempt = client.submitting(Stub(), client.service_pb2.SubmitTransactionRequest())
first, second, third = attempt(), attempt(), attempt()
assert first is None and 0 < second < third, (first, second, third)
"#;
    run(Command::new(&*PYTHON)
        .args(["-c", script])
        .env("PYTHONPATH", repository().join("tests/python"))
        .env("PYTHONDONTWRITEBYTECODE", "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_submits_and_reads_the_outcome() {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let (lite, post) = (
        Bank::sqlite(&scratch, "lite").await,
        Bank::postgres("post").await,
    );
    let _lite = Agent::start(&scratch, &coordinator, &lite).await;
    let _post = Agent::start(&scratch, &coordinator, &post).await;
    let address = coordinator.address();

    let transfer = [
        address.as_str(),
        "lite",
        "post",
        "--amount=7",
        "--request-id=first",
    ];
    let (code, first) = client(&transfer);
    assert_eq!((code, &first["outcome"]), (Some(0), &"committed".into()));
    assert_eq!(
        first["looked_up"]["state"], "committed",
        "the look-up agrees: {first}"
    );
    let (code, again) = client(&transfer);
    assert_eq!(code, Some(0));
    assert_eq!(
        again["transaction_id"], first["transaction_id"],
        "the same request id is the same transfer"
    );
    assert_eq!(
        (lite.balance(1).await, post.balance(1).await),
        (INITIAL_BALANCE - 7, INITIAL_BALANCE + 7)
    );

    let (code, overdrawn) = client(&[&address, "lite", "post", "--amount=1000"]);
    assert_eq!(code, Some(1), "{overdrawn}");
    let reason = &overdrawn["abort_reason"];
    assert_eq!(
        (&reason["code"], &reason["participant"]),
        (&"refused".into(), &"lite".into()),
        "{overdrawn}"
    );

    let (code, refused) = client(&[&address, "lite", "nobody"]);
    assert_eq!(
        (code, &refused["reason"]),
        (Some(3), &"PARTICIPANT_UNKNOWN".into()),
        "{refused}"
    );
    assert_eq!(
        lite.total().await + post.total().await,
        40 * INITIAL_BALANCE
    );
}
