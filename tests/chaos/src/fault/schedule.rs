//! Which faults a round has, and when: the same for the same seed and round.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::{Fault, Kind};

/// Between two faults, on average.
const PACE: Duration = Duration::from_millis(1_100);

/// The faults of a round, in their order in time.
pub(crate) fn of(seed: u64, round: u64, length: Duration, kinds: &[Kind]) -> Vec<Fault> {
    let mut dice = StdRng::seed_from_u64(seed.rotate_left(32) ^ round);
    let number = usize::try_from(length.as_millis() / PACE.as_millis()).unwrap_or(1);
    let mut drawn = due(kinds, round);
    let fill: Vec<_> = kinds
        .iter()
        .flat_map(|kind| std::iter::repeat_n(*kind, kind.weight()))
        .collect();
    while drawn.len() < number && !fill.is_empty() {
        drawn.push(fill[dice.random_range(0..fill.len())]);
    }
    drawn.shuffle(&mut dice);
    // The last ones get some time, too.
    let slot = length.mul_f64(0.85) / u32::try_from(drawn.len().max(1)).unwrap_or(u32::MAX);
    let slots = (0..).map(|place| slot * place);
    drawn
        .into_iter()
        .zip(slots)
        .map(|(kind, slot_start)| Fault {
            at: slot_start + slot.mul_f64(dice.random()),
            kind,
            dice: dice.random(),
        })
        .collect()
}

/// Each kind comes up in every second round at least; in each, where there are few.
fn due(kinds: &[Kind], round: u64) -> Vec<Kind> {
    let few = kinds.len() <= 4;
    let mut places = (round..).zip(kinds);
    let due = places
        .by_ref()
        .filter(|(place, _)| few || place.is_multiple_of(2));
    due.map(|(_, kind)| *kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(25);

    #[test]
    fn every_kind_comes_up_within_two_rounds() {
        for seed in 0..50 {
            let faults = [1, 2]
                .map(|round| of(seed, round, LENGTH, &Kind::ALL))
                .concat();
            for kind in Kind::ALL {
                assert!(faults.iter().any(|fault| fault.kind == kind), "{kind:?}");
            }
        }
    }

    #[test]
    fn the_same_round_has_the_same_faults() {
        let draw = |round| format!("{:?}", of(7, round, LENGTH, &Kind::ALL));
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }
}
