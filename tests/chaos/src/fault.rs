//! What is done to the system.
//!
//! A fault is *installed* where it is known to have hit somebody, *skipped* where it found nobody to hit, and *indeterminate* where nobody can
//! say. Only the first proves anything.

mod directory;
mod disk;
pub(crate) mod failpoint;
mod hand;
pub(crate) mod kill;
mod network;
mod pause;
pub(crate) mod schedule;

use std::time::Duration;

use clap::ValueEnum;

use crate::trial::Trial;

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// kill -9 of the coordinator or an agent at a random instant; and of all of them at the end of each round.
    Kill,
    /// kill -9 of itself at a named point.
    Failpoint,
    /// kill -9 of a database server.
    Database,
    /// SIGSTOP of a process, past every timeout, and SIGCONT.
    Pause,
    /// Nothing passes between two processes, one way or both, and nobody is told.
    Partition,
    /// Requests arrive, their answers don't.
    LostReplies,
    /// Connections break.
    Reset,
    /// What passes is held up, or drips.
    Delay,
    /// A sync of the coordinator's log fails once, and seems to work from then on.
    SyncError,
    /// Syncs of the coordinator's log are slow.
    SyncSlow,
    /// A sync of the coordinator's log hangs for seconds.
    SyncHang,
    /// Writes to the coordinator's log find no space.
    DiskFull,
    /// A prepared branch is rolled back by hand.
    Hand,
    /// The coordinator starts on an empty directory, and later on its own again.
    EmptyDirectory,
    /// The coordinator starts on an old copy of its directory, and later on its own again.
    OldDirectory,
}

/// What came of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Landing {
    Installed,
    Skipped,
    Indeterminate,
}

/// A fault as it is planned.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// After the beginning of the round.
    pub(crate) at: Duration,
    pub(crate) kind: Kind,
    /// All its dice.
    pub(crate) dice: u64,
}

impl Kind {
    pub(crate) const ALL: [Self; 15] = [
        Self::Kill,
        Self::Failpoint,
        Self::Database,
        Self::Pause,
        Self::Partition,
        Self::LostReplies,
        Self::Reset,
        Self::Delay,
        Self::SyncError,
        Self::SyncSlow,
        Self::SyncHang,
        Self::DiskFull,
        Self::Hand,
        Self::EmptyDirectory,
        Self::OldDirectory,
    ];

    /// How often it fills the time that others leave.
    fn weight(self) -> usize {
        match self {
            Self::Kill | Self::Failpoint => 6,
            Self::Database => 1,
            _ => 0,
        }
    }

    /// As on the command line.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Fault {
    /// Makes it, and waits for its end.
    pub(crate) async fn make(&self, trial: &Trial) {
        let dice = self.dice;
        match self.kind {
            Kind::Kill => kill::any(trial, dice).await,
            Kind::Failpoint => failpoint::arm(trial, dice).await,
            Kind::Database => kill::database(trial, dice).await,
            Kind::Pause => pause::any(trial, dice).await,
            Kind::Partition | Kind::LostReplies | Kind::Reset | Kind::Delay => {
                network::any(trial, self.kind, dice).await;
            }
            Kind::SyncError | Kind::SyncSlow | Kind::SyncHang | Kind::DiskFull => {
                disk::any(trial, self.kind, dice).await;
            }
            Kind::Hand => hand::roll_back(trial).await,
            Kind::EmptyDirectory => directory::empty(trial).await,
            Kind::OldDirectory => directory::old(trial).await,
        }
    }
}
