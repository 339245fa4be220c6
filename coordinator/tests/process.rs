//! The coordinator as a process: how it says that it serves, and how it ends.

use std::{
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tempfile::tempdir;

const PATIENCE: Duration = Duration::from_secs(20);

fn start(directory: &Path, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_unanimity-coordinator"))
        .args(["--listen", "127.0.0.1:0", "--segment-bytes", "1048576"])
        .arg("--data-directory")
        .arg(directory.join("log"))
        .env("UNANIMITY_READY_FILE", directory.join("ready"))
        .args(more)
        .stderr(Stdio::null())
        .spawn()
        .expect("started")
}

fn wait_for<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn end(child: &mut Child) -> ExitStatus {
    wait_for(|| child.try_wait().expect("waited"))
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([format!("-{name}"), child.id().to_string()])
        .status();
    assert!(status.expect("kill runs").success());
}

#[test]
fn it_tells_its_address_in_a_file_and_drains_at_a_signal() {
    let directory = tempdir().expect("a directory");
    let ready = directory.path().join("ready");
    for name in ["TERM", "INT"] {
        let mut child = start(directory.path(), &[]);
        let address = wait_for(|| std::fs::read_to_string(&ready).ok());
        std::net::TcpStream::connect(address.trim()).expect("listening");
        signal(&child, name);
        assert_eq!(end(&mut child).code(), Some(0), "{name}");
        assert!(
            !ready.exists(),
            "a file that is left would send people to nowhere"
        );
    }
}

#[test]
fn what_it_can_not_start_with_has_its_exit_code() {
    let directory = tempdir().expect("a directory");
    assert_eq!(
        end(&mut start(directory.path(), &["--no-such-flag"])).code(),
        Some(2)
    );
    assert_eq!(
        end(&mut start(directory.path(), &["--max-branches", "0"])).code(),
        Some(78)
    );
    assert_eq!(
        end(&mut start(
            directory.path(),
            &["--tls-certificate", "/no", "--tls-key", "/no"]
        ))
        .code(),
        Some(78)
    );
    let mut first = start(directory.path(), &[]);
    wait_for(|| std::fs::read_to_string(directory.path().join("ready")).ok());
    let other = directory.path().join("other");
    let mut second = start(
        directory.path(),
        &["--ready-file", other.to_str().expect("a path")],
    );
    assert_eq!(end(&mut second).code(), Some(73));
    first.kill().expect("killed");
    first.wait().expect("waited");
}

#[test]
fn help_teaches_the_exit_codes() {
    let output = Command::new(env!("CARGO_BIN_EXE_unanimity-coordinator"))
        .arg("--help")
        .output()
        .expect("run");
    let text = String::from_utf8(output.stdout).expect("text");
    for word in [
        "--data-directory",
        "UNANIMITY_DATA_DIRECTORY",
        "Exit codes:",
        "65",
        "74",
        "130",
    ] {
        assert!(text.contains(word), "{word}");
    }
}
