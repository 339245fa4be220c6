//! Installs what the tests need and the machine lacks: the databases, strace, and Python's virtual environments.
//!
//! Only Debian and its kin are known. Nothing is started: the tests run private servers on data directories of their own.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::step::step;

/// A package, and how to see that it's not needed.
struct Need {
    package: &'static str,
    what: &'static str,
    is_met: fn() -> bool,
}

const NEEDS: [Need; 4] = [
    Need {
        package: "postgresql",
        what: "PostgreSQL's initdb and postgres",
        is_met: has_postgres,
    },
    Need {
        package: "mariadb-server",
        what: "MariaDB's mariadb-install-db and mariadbd",
        is_met: || has_program("mariadbd") && has_program("mariadb-install-db"),
    },
    Need {
        package: "strace",
        what: "strace, which counts and fails syncs",
        is_met: || has_program("strace"),
    },
    Need {
        package: "python3-venv",
        what: "Python 3 with its module venv",
        is_met: has_python,
    },
];

/// Debian's packages start their services when installed, unless this file says that nothing may be started.
const SCRIPT: &str = r#"
set -eu
policy=/usr/sbin/policy-rc.d
if ! [ -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "$@" > /dev/null
"#;

/// Installs what is missing.
///
/// # Errors
/// Where that can't be done: then it says what to install.
pub(crate) fn missing() -> Result<()> {
    components()?;
    packages()
}

/// A minimal toolchain has no rustfmt and no clippy.
fn components() -> Result<()> {
    let missing = ["fmt", "clippy"]
        .iter()
        .any(|tool| !succeeds("cargo", &[tool, "--version"]));
    if !missing {
        return Ok(());
    }
    let mut rustup = Command::new("rustup");
    step(
        "install rustfmt, clippy",
        rustup.args(["component", "add", "rustfmt", "clippy"]),
    )
}

fn packages() -> Result<()> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !(need.is_met)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let Some(mut shell) = privileged_shell() else {
        let wanted: Vec<_> = missing
            .iter()
            .map(|need| format!("  {}", need.what))
            .collect();
        bail!(
            "the tests need what is not here:\n{}\nOn Debian or Ubuntu: sudo apt-get install {}",
            wanted.join("\n"),
            packages.join(" ")
        );
    };
    let shell = shell.args(["sh", "-c", SCRIPT, "install"]).args(&packages);
    step(&format!("install {}", packages.join(", ")), shell)?;
    match missing.iter().find(|need| !(need.is_met)()) {
        Some(need) => bail!(
            "{} was installed, but there still is no {}",
            need.package,
            need.what
        ),
        None => Ok(()),
    }
}

/// What runs the command that follows as root, if anything can, where there is apt-get.
fn privileged_shell() -> Option<Command> {
    if !has_program("apt-get") {
        return None;
    }
    if succeeds("sh", &["-c", "[ $(id -u) = 0 ]"]) {
        return Some(Command::new("env"));
    }
    if succeeds("sudo", &["-n", "true"]) {
        let mut sudo = Command::new("sudo");
        sudo.arg("-n");
        return Some(sudo);
    }
    None
}

/// Debian keeps PostgreSQL's programs out of the path.
fn has_postgres() -> bool {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let complete = |directory: &Path| {
        ["initdb", "postgres"]
            .iter()
            .all(|name| directory.join(name).exists())
    };
    let mut directories = versions
        .map(|version| version.path().join("bin"))
        .chain(path());
    directories.any(|directory| complete(&directory))
}

fn has_python() -> bool {
    succeeds("python3", &["-c", "import venv, ensurepip"])
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Servers are often where only root looks.
fn has_program(name: &str) -> bool {
    let mut directories = path().chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    directories.any(|directory| directory.join(name).exists())
}

fn path() -> impl Iterator<Item = std::path::PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).collect::<Vec<_>>().into_iter()
}
