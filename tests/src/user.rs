//! Whom database servers run as.
//!
//! PostgreSQL refuses to run as root. Where the tests do, its servers run as the user that Debian's package made, or else as nobody.

use std::{fs, os::unix::fs::chown, os::unix::process::CommandExt, path::Path, process::Command};

/// A user by numbers; `None` inside stands for whoever runs the tests.
#[derive(Clone, Copy, Debug)]
pub struct User(Option<(u32, u32)>);

impl User {
    /// The user of this name, where the tests run as root.
    pub fn named(name: &str) -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self(None);
        }
        let users = fs::read_to_string("/etc/passwd").expect("every system has it");
        let find = |name: &str| {
            let line = users
                .lines()
                .find(|line| line.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2);
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        };
        Self(Some(
            find(name)
                .or_else(|| find("nobody"))
                .expect("every system has nobody"),
        ))
    }

    /// Gives a file or directory to the user.
    pub fn own(self, path: &Path) {
        if let Some((user, group)) = self.0 {
            chown(path, Some(user), Some(group)).expect("root may give things away");
        }
    }

    /// A command that runs as the user.
    pub fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some((user, group)) = self.0 {
            command.uid(user).gid(group);
        }
        command
    }
}
