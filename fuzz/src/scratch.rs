//! Where targets that need files put them: in memory where the machine allows, for a sync there costs nothing.

use std::path::Path;

use tempfile::TempDir;

/// A directory that goes when the value does.
pub(crate) fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        TempDir::with_prefix_in("unanimity-fuzz-", memory)
    } else {
        TempDir::with_prefix("unanimity-fuzz-")
    };
    made.expect("a directory for scratch files can be made")
}
