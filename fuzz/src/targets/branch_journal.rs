//! The journal of the agent around a service, a SQLite database.

use std::{cell::RefCell, fs, path::Path, sync::OnceLock};

use tokio::runtime::{Builder, Runtime};
use unanimity_participant::fuzzing::{branch_journal, make_branch_journal};

use crate::{Target, scratch};

pub(super) const BRANCH_JOURNAL: Target = Target {
    name: "branch_journal",
    promise: "a journal with altered bytes is read or refused, and never makes the agent panic",
    check,
    seeds,
};

thread_local! {
    static RUNTIME: RefCell<Runtime> = RefCell::new(
        Builder::new_current_thread().enable_all().build().expect("a runtime can be made"),
    );
}

fn check(bytes: &[u8]) {
    let directory = scratch::directory();
    let path = directory.path().join("journal");
    fs::write(&path, altered(bytes)).expect("scratch files can be written");
    RUNTIME.with_borrow(|runtime| read(runtime, &path));
}

/// A journal with a branch in each state, in which bytes are changed: each by three bytes, where it stands and what it becomes.
fn altered(bytes: &[u8]) -> Vec<u8> {
    let mut file = whole().to_vec();
    for change in bytes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]]));
        // Of no use past the end; there the file is cut.
        match file.get_mut(at) {
            Some(byte) => *byte = change[2],
            None => file.truncate(file.len().saturating_sub(change[2].into())),
        }
    }
    file
}

fn whole() -> &'static [u8] {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let directory = scratch::directory();
        let path = directory.path().join("journal");
        RUNTIME.with_borrow(|runtime| {
            let made = runtime.block_on(make_branch_journal(&path));
            made.expect("a journal can be made");
        });
        fs::read(&path).expect("it can be read")
    })
}

/// Where the pages of the tables begin, a change in the first bytes.
fn seeds() -> Vec<Vec<u8>> {
    let page = |at: u16| {
        let at = (at * 4096 + 3).to_le_bytes();
        vec![at[0], at[1], 1]
    };
    (0..5).map(page).chain([Vec::new()]).collect()
}

fn read(runtime: &Runtime, path: &Path) {
    let Ok(branches) = runtime.block_on(branch_journal(path)) else {
        return;
    };
    for (branch, told) in branches {
        assert!(told.is_some(), "{branch} is listed and not there");
    }
}
