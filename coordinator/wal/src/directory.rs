//! The directory of a log: which segments it has, and making its entries durable.

use std::fs::{DirBuilder, File, OpenOptions, read_dir, remove_file};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::{Lsn, WalError};

const SEGMENT_SUFFIX: &str = ".wal";
const NEXT_SEGMENT: &str = "next.wal.tmp";

/// Where the segment that starts at `first_lsn` lives.
pub(crate) fn segment_path(directory: &Path, first_lsn: Lsn) -> PathBuf {
    directory.join(segment_name(first_lsn))
}

pub(crate) fn segment_name(first_lsn: Lsn) -> String {
    format!("{first_lsn:016x}{SEGMENT_SUFFIX}")
}

/// Where the segment that is prepared for the next rotation lives.
pub(crate) fn next_segment_path(directory: &Path) -> PathBuf {
    directory.join(NEXT_SEGMENT)
}

/// Creates the directory, for the owner alone, and makes its entry durable, also where it exists: the
/// process which made it may have been stopped, or have failed, before it was. One level after the
/// other, so that only the innermost directory that exists may be such a one.
pub(crate) fn create(directory: &Path) -> Result<(), WalError> {
    let ancestors = directory
        .ancestors()
        .filter(|path| !path.as_os_str().is_empty());
    let (missing, existing): (Vec<_>, Vec<_>) =
        ancestors.partition(|path| !path.try_exists().unwrap_or(true));
    if let Some(innermost) = existing.first() {
        sync_entry(innermost)?;
    }
    for path in missing.into_iter().rev() {
        create_level(path)?;
        sync(parent(path))?;
    }
    // Not needed any more, but says so where the path leads to something else.
    create_level(directory)
}

fn create_level(path: &Path) -> Result<(), WalError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| WalError::io("create the log directory", path, error))
}

/// Makes the entry of a directory durable that existed before. Where this user may not read the
/// directory around it, the whole file system is synced.
fn sync_entry(path: &Path) -> Result<(), WalError> {
    match sync(parent(path)) {
        Err(WalError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            File::open(path)
                .and_then(|file| Ok(rustix::fs::syncfs(file)?))
                .map_err(|error| WalError::io("sync the file system of", path, error))
        }
        other => other,
    }
}

/// The directory that holds the entry of `path`. The root's is in itself.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Makes the entries of a directory durable.
pub(crate) fn sync(directory: &Path) -> Result<(), WalError> {
    if cfg!(unanimity_bug = "directory-not-synced") {
        return Ok(());
    }
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(|error| WalError::io("sync the directory", directory, error))
}

/// The first LSNs of all segments, ascending.
pub(crate) fn segments(directory: &Path) -> Result<Vec<Lsn>, WalError> {
    let list = || -> io::Result<Vec<PathBuf>> {
        read_dir(directory)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    let paths = list().map_err(|error| WalError::io("list", directory, error))?;
    let mut segments = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(SEGMENT_SUFFIX) {
            let first_lsn = first_lsn_of(&name).ok_or_else(|| WalError::NotALog {
                path: path.clone(),
                reason: "a segment's name is 16 hexadecimal digits and `.wal`".to_owned(),
            })?;
            segments.push(first_lsn);
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

fn first_lsn_of(name: &str) -> Option<Lsn> {
    let first_lsn = Lsn::from_str_radix(name.strip_suffix(SEGMENT_SUFFIX)?, 16).ok()?;
    (segment_name(first_lsn) == name).then_some(first_lsn)
}

/// Makes everything durable that an earlier process may have left in the page cache alone. Nothing
/// may be read before: acting on a record which a power loss then takes away would undo it.
pub(crate) fn sync_segments(directory: &Path, segments: &[Lsn]) -> Result<(), WalError> {
    for first_lsn in segments {
        let path = segment_path(directory, *first_lsn);
        open_segment(&path)?
            .sync_all()
            .map_err(|error| WalError::io("sync", &path, error))?;
    }
    sync(directory)
}

/// Opens a segment for reading and writing.
pub(crate) fn open_segment(path: &Path) -> Result<File, WalError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| WalError::io("open", path, error))
}

/// Creates a new file for the owner alone.
pub(crate) fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Removes a file that may be missing.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The bytes that this user may still write to the filesystem of the directory.
pub(crate) fn free_bytes(directory: &Path) -> Result<u64, WalError> {
    let statistics = rustix::fs::statvfs(directory)
        .map_err(|error| WalError::io("ask for the free space of", directory, error.into()))?;
    Ok(statistics.f_bavail.saturating_mul(statistics.f_frsize))
}
