//! The inputs that are kept: those that search found to reach new code, and those that once broke a promise.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::Target;

/// The inputs that are kept for a target.
pub fn directory(target: &Target) -> PathBuf {
    root().join("corpus").join(target.name)
}

/// Inputs that broke a promise, in files that start with the target's name.
pub fn crashes() -> PathBuf {
    root().join("crashes")
}

/// All inputs of a target: its seeds, those that are kept, and those that broke its promise, each with what to call it.
///
/// # Errors
/// Where they can't be read.
pub fn inputs(target: &Target) -> io::Result<Vec<(String, Vec<u8>)>> {
    let seeds = (target.seeds)().into_iter().enumerate();
    let seeds = seeds.map(|(at, bytes)| (format!("seed {at}"), bytes));
    let kept = files(&directory(target), "")?;
    let crashes = files(&crashes(), &format!("{}-", target.name))?;
    let read = |path: PathBuf| Ok((path.display().to_string(), fs::read(&path)?));
    let files = kept.into_iter().chain(crashes).map(read);
    seeds.map(Ok).chain(files).collect()
}

/// The files in a directory whose names start so, in order; none where there is no directory.
///
/// # Errors
/// Where it can't be read.
pub fn files(directory: &Path, start: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let paths: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(start) && !name.starts_with('.')
    };
    let mut paths: Vec<_> = paths?.into_iter().filter(ours).collect();
    paths.sort();
    Ok(paths)
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
