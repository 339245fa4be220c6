//! A proof harness: a program that checks promises, prints its figures as one line of JSON, and exits 0 only if all were kept.

use std::{
    env, fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use jiff::Zoned;
use serde_json::{Value, json};

/// A harness to be run.
pub(crate) struct Harness {
    /// Its name: that of its file of figures, and of the task that runs it.
    pub(crate) name: &'static str,
    /// What runs it.
    pub(crate) command: Command,
    /// Whether its figures go into `docs/proof/<name>.jsonl`.
    pub(crate) record: bool,
}

impl Harness {
    /// Runs it with `--json`, and returns the figures.
    ///
    /// # Errors
    /// Where it can't be run, says nothing, or a promise was broken.
    pub(crate) fn run(mut self) -> Result<Value> {
        let output = self
            .command
            .arg("--json")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("{} can't be run", self.name))?;
        let text = String::from_utf8(output.stdout)?;
        print!("{text}");
        if !output.status.success() {
            bail!("{}: {}", self.name, output.status);
        }
        let line = text.lines().last().unwrap_or_default();
        let figures: Value = serde_json::from_str(line)
            .with_context(|| format!("{} printed no figures", self.name))?;
        if self.record {
            record(self.name, &figures)?;
        }
        Ok(figures)
    }
}

/// Adds figures to those of earlier runs, with what they were measured on.
pub(crate) fn record(name: &str, figures: &Value) -> Result<()> {
    let directory = root().join("docs/proof");
    fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{name}.jsonl"));
    let arguments: Vec<_> = env::args()
        .skip(1)
        .filter(|word| word != "--record")
        .collect();
    let line = json!({
        "date": Zoned::now().strftime("%Y-%m-%d %H:%M").to_string(),
        "commit": commit()?,
        "command": format!("cargo xtask {}", arguments.join(" ")),
        "figures": figures,
    });
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)?;
    writeln!(file, "{line}")?;
    eprintln!("recorded in {}", path.display());
    Ok(())
}

/// The commit that was measured; with a plus where files were changed since.
fn commit() -> Result<String> {
    let git = |words: &[&str]| -> Result<String> {
        let output = Command::new("git")
            .current_dir(root())
            .args(words)
            .output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--", ".", ":!docs/proof"])?;
    let mark = if changed.is_empty() { "" } else { "+" };
    Ok(git(&["rev-parse", "--short=9", "HEAD"])? + mark)
}

/// The workspace.
pub(crate) fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent()
        .map_or_else(|| own.clone(), std::path::Path::to_path_buf)
}
