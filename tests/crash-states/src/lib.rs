//! Every legal state of the log's files after a crash, reopened.
//!
//! The log promises that what it acknowledged survives a power loss. A test that kills a process can't show this, since the page cache survives
//! too. So this records what real runs ask of the file system, works out from a model of disks what a crash at any moment may leave, writes each
//! such state into a directory, and lets the real log open it. It must never take the log's own word for what is durable.
//!
//! ```text
//! script ──driver under strace──▶ recording: writes, syncs, names, acknowledgements
//!                                     │ up to each moment
//!                                     ▼
//!                                   disk: what is certain, and what may be old or new
//!                                     │ each choice
//!                                     ▼
//!                                   image ──reopened──▶ outcome ──compared with──▶ promise
//! ```
//!
//! Recovery is code like any other: the opening of such a state is recorded too, and its own crash states are opened.
//!
//! # What disks may do
//!
//! - A sync that succeeded makes durable what was written to that file, or done in that directory, before the sync began.
//! - What is not synced is on disk or not, in any combination: each 512-byte sector, the file's length, each change of a directory. A sector is
//!   written whole or not at all; a rename too. This is weaker than what ext4 or XFS do, which keep the order of a directory's changes.
//! - Where a file grew and the data didn't reach the disk, it reads as zeros or as garbage.
//! - After a sync of a file that *failed*, any of what it was to make durable may be missing, reads show it nevertheless, and later syncs succeed
//!   without writing it (Rebello et al., "Can applications recover from fsync failures?", ATC '20). A directory's changes are the journal's: if one
//!   can't be written the file system stops, so a later success covers them.
//!
//! The method is that of ALICE (Pillai et al., "All file systems are not created equal", OSDI '14).

pub mod campaign;
pub mod damage;
pub mod disk;
pub mod driver;
pub mod event;
pub mod figures;
pub mod image;
pub mod promise;
pub mod recording;
pub mod recovery;
pub mod reopen;
pub mod script;
pub mod search;
mod trace;
pub mod violation;
