//! What catches seeded bugs: how it is built and run, and what it says of a broken promise.

/// What catches bugs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harness {
    /// A program that exits with 1 and names the invariant that was broken.
    Program {
        name: &'static str,
        package: &'static str,
        arguments: &'static str,
    },
    /// Tests.
    Tests {
        name: &'static str,
        /// As cargo selects them. What is selected together is built with the same features: so all that need a database select the same.
        packages: &'static str,
        target: &'static str,
        /// They start the programs of these packages.
        with_programs: bool,
    },
}

impl Harness {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Harness::Program { name, .. } | Harness::Tests { name, .. } => name,
        }
    }

    /// The name, with what tells it from others of that name.
    pub(crate) fn label(self) -> String {
        match self {
            Harness::Program {
                name, arguments, ..
            } => format!("{name} {arguments}"),
            Harness::Tests { name, .. } => name.to_owned(),
        }
    }

    /// The arguments of cargo that build it.
    pub(crate) fn build(self) -> String {
        match self {
            Harness::Program { package, .. } => {
                format!("build --locked --profile bug --package {package}")
            }
            Harness::Tests {
                packages,
                target,
                with_programs: true,
                ..
            } => format!("build --locked --profile bug {packages} --bins {target}"),
            Harness::Tests {
                packages, target, ..
            } => format!("test --locked --profile bug {packages} {target} --no-run"),
        }
    }

    /// The arguments of cargo that run it; of tests, those whose names hold one of the patterns.
    pub(crate) fn run(self, patterns: &[&str]) -> String {
        match self {
            Harness::Program {
                package, arguments, ..
            } => format!("run --locked --quiet --profile bug --package {package} -- {arguments}"),
            Harness::Tests {
                packages, target, ..
            } => format!(
                "test --locked --profile bug {packages} {target} -- {}",
                patterns.join(" ")
            ),
        }
    }

    /// The exit code by which it says that a promise was broken.
    pub(crate) fn failure_code(self) -> i32 {
        match self {
            Harness::Program { .. } => 1,
            Harness::Tests { .. } => 101,
        }
    }

    /// Whether what it said, having failed, is that this was broken.
    pub(crate) fn names(self, pattern: &str, output: &str) -> bool {
        match self {
            Harness::Program { .. } => output.contains(pattern),
            Harness::Tests { .. } => ended(pattern, "FAILED", output),
        }
    }

    /// Whether it looks at this at all, by what it said when all was well.
    pub(crate) fn has(self, pattern: &str, output: &str) -> bool {
        match self {
            Harness::Program { .. } => true,
            Harness::Tests { .. } => ended(pattern, "ok", output),
        }
    }
}

/// Whether a test whose name holds the pattern ended like this.
fn ended(pattern: &str, how: &str, output: &str) -> bool {
    output.lines().any(|line| {
        line.strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(how)?.strip_suffix(" ... "))
            .is_some_and(|name| name.contains(pattern))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TESTS: Harness = Harness::Tests {
        name: "log",
        packages: "--package unanimity-wal",
        target: "--lib",
        with_programs: false,
    };

    #[test]
    fn only_a_test_of_that_name_that_failed_has_caught_a_bug() {
        let output = "test a::b_holds ... ok\ntest a::c_holds ... FAILED\n";
        assert!(TESTS.names("c_holds", output) && !TESTS.names("b_holds", output));
        assert!(TESTS.has("b_holds", output) && !TESTS.has("c_holds", output));
        assert!(!TESTS.names("c_holds", "error: c_holds ... FAILED"));
    }
}
