//! What a run of the harness counts.

use std::ops::AddAssign;

use serde::Serialize;

/// Counts of what was done.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Runs that were recorded, with and without faults.
    pub runs: u64,
    /// Recoveries that were recorded.
    pub recoveries: u64,
    /// Writes, syncs, changes of directories and words, in all recordings.
    pub operations: u64,
    /// Moments at which a crash was looked at.
    pub crash_points: u64,
    /// States that a crash may leave at these moments.
    pub crash_states: u64,
    /// Of these, in recordings of recoveries.
    pub recovery_states: u64,
    /// Different states; each was opened thrice.
    pub distinct_states: u64,
    /// Altered bytes and bits of a log that was then opened.
    pub flips: u64,
    /// Lengths to which a segment was cut.
    pub truncations: u64,
    /// Segments that were removed, swapped or doubled.
    pub rearrangements: u64,
    /// Broken promises.
    pub violations: u64,
    /// How long it took.
    pub seconds: f64,
}

impl AddAssign<&Self> for Figures {
    fn add_assign(&mut self, other: &Self) {
        self.runs += other.runs;
        self.recoveries += other.recoveries;
        self.operations += other.operations;
        self.crash_points += other.crash_points;
        self.crash_states += other.crash_states;
        self.recovery_states += other.recovery_states;
        self.distinct_states += other.distinct_states;
        self.flips += other.flips;
        self.truncations += other.truncations;
        self.rearrangements += other.rearrangements;
        self.violations += other.violations;
        self.seconds += other.seconds;
    }
}
