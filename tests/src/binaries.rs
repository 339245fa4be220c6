//! Our own programs, as cargo built them.

use std::{env, path::PathBuf};

/// The path of a program of this workspace, of the same profile as the test.
///
/// # Panics
/// Where it isn't built: cargo builds only the programs of the package that is tested.
pub fn path(name: &str) -> PathBuf {
    let test = env::current_exe().expect("a process has an executable");
    // A test is in target/<profile>/deps, a program one higher.
    let found = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("{name} is not built: run cargo build --workspace --bins first, or cargo xtask test")
    })
}
