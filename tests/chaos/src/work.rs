//! What clients ask for: drawn from a seed and a number, so that the same work can be asked for again.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use unanimity_client::{Client, Operation, SagaSubmission, Step, Submission};

use crate::bank::{ACCOUNTS, SAGA_ACCOUNT};

/// Time until what is not decided is aborted: two that wait for each other's locks in different databases end by this.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(3);

/// A row that a piece of work leaves in a bank.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Effect {
    /// The bank, by its place among the banks.
    pub(crate) bank: usize,
    /// Which part of the work.
    pub(crate) part: String,
    pub(crate) account: i64,
    pub(crate) amount: i64,
}

/// How it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// In one request.
    Submitted {
        /// Answered at the durable decision, not after it was delivered.
        when_decided: bool,
    },
    /// Operation by operation; some of them are given up before the end.
    Interactive { abandoned: bool },
    /// As a saga, whose first step can be undone; one that is doomed has a pivot that always refuses.
    Saga { doomed: bool },
}

/// A piece of work.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// The request id. It stands in every row that the work leaves.
    pub(crate) request: String,
    pub(crate) shape: Shape,
    /// All that it leaves where it is done.
    pub(crate) effects: Vec<Effect>,
    /// A balance that is only looked at: bank and account.
    pub(crate) reads: Option<(usize, i64)>,
    /// For how long the client asks again by itself.
    pub(crate) patience: Duration,
}

/// What work there is: the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// The banks' names.
    pub(crate) banks: Vec<String>,
}

impl Plan {
    /// The `number`th piece of work.
    pub(crate) fn work(&self, number: u64) -> Work {
        let mut random =
            StdRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut banks: Vec<usize> = (0..self.banks.len()).collect();
        banks.shuffle(&mut random);
        let amount = random.random_range(1..=20);
        let kind = random.random_range(0..100);
        let (shape, parties, reads) = match kind {
            0..55 => (
                Shape::Submitted {
                    when_decided: kind < 12,
                },
                2,
                false,
            ),
            55..63 => (
                Shape::Submitted {
                    when_decided: false,
                },
                3,
                false,
            ),
            63..72 => (
                Shape::Submitted {
                    when_decided: kind < 65,
                },
                1,
                false,
            ),
            72..78 => (
                Shape::Submitted {
                    when_decided: false,
                },
                2,
                true,
            ),
            78..82 => (
                Shape::Submitted {
                    when_decided: false,
                },
                1,
                true,
            ),
            82..90 => (
                Shape::Interactive {
                    abandoned: kind == 82,
                },
                2,
                kind > 87,
            ),
            _ => (Shape::Saga { doomed: kind > 96 }, 3, false),
        };
        let effects = match shape {
            Shape::Saga { .. } => saga(&banks),
            _ => transfer(&mut random, &banks, parties, amount),
        };
        Work {
            request: format!("s{}-{number}", self.seed),
            shape,
            effects,
            reads: reads.then(|| {
                (
                    banks[parties.min(banks.len() - 1)],
                    random.random_range(1..=ACCOUNTS),
                )
            }),
            patience: match random.random_range(0..3) {
                0 => Duration::from_secs(3),
                _ => Duration::ZERO,
            },
        }
    }
}

/// From an account of the first bank to accounts of the others, or within the only one. Now and then more than there is.
fn transfer(random: &mut StdRng, banks: &[usize], parties: usize, amount: i64) -> Vec<Effect> {
    let amount = match random.random_range(0..25) {
        0 => 1_000_000,
        _ => amount,
    };
    let mut effect = |bank: usize, part: &str, amount| Effect {
        bank,
        part: part.into(),
        // Some accounts are in demand, so that locks are waited for.
        account: match random.random_range(0..50) {
            0 => random.random_range(1..=5),
            _ => random.random_range(6..ACCOUNTS),
        },
        amount,
    };
    match parties {
        1 => {
            let debit = effect(banks[0], "debit", -amount);
            let mut credit = effect(banks[0], "credit", amount);
            // In the same order always, so that two within one bank never wait for each other.
            credit.account = debit.account + 1;
            vec![debit, credit]
        }
        2 => vec![
            effect(banks[0], "debit", -amount),
            effect(banks[1], "credit", amount),
        ],
        _ => vec![
            effect(banks[0], "debit", -2 * amount),
            effect(banks[1], "credit", amount),
            effect(banks[2], "other", amount),
        ],
    }
}

/// A step that can be undone, the pivot, and one that is tried until it is done.
fn saga(banks: &[usize]) -> Vec<Effect> {
    let steps = ["do:first", "do:pivot", "do:last"];
    let step = |(bank, part): (&usize, &str)| Effect {
        bank: *bank,
        part: part.into(),
        account: SAGA_ACCOUNT,
        amount: 0,
    };
    banks.iter().cycle().zip(steps).map(step).collect()
}

impl Work {
    /// Of a saga that was undone, all that may be left: each step that can be undone with what undid it.
    pub(crate) fn undone(&self) -> Vec<(Effect, Effect)> {
        let Shape::Saga { .. } = self.shape else {
            return Vec::new();
        };
        let done = self.effects[0].clone();
        let undo = Effect {
            part: "undo:first".into(),
            ..done.clone()
        };
        vec![(done, undo)]
    }

    /// The banks that it writes to.
    pub(crate) fn banks(&self) -> impl Iterator<Item = usize> + '_ {
        self.effects.iter().map(|effect| effect.bank)
    }

    /// Whether more than one bank has something to lose.
    pub(crate) fn writes_to_several(&self) -> bool {
        self.banks().any(|bank| bank != self.effects[0].bank)
    }

    /// What each bank has to do, in the order of the effects.
    pub(crate) fn operations(&self) -> Vec<(usize, Vec<Operation>)> {
        let mut branches: Vec<(usize, Vec<Operation>)> = Vec::new();
        for effect in &self.effects {
            let operations = self.of(effect);
            match branches.iter_mut().find(|(bank, _)| *bank == effect.bank) {
                Some((_, more)) => more.extend(operations),
                None => branches.push((effect.bank, operations.into())),
            }
        }
        if let Some((bank, account)) = self.reads {
            let look = Operation::named("balance").with("account", account);
            match branches.iter_mut().find(|(other, _)| *other == bank) {
                Some((_, more)) => more.push(look),
                None => branches.push((bank, vec![look])),
            }
        }
        branches
    }

    fn of(&self, effect: &Effect) -> [Operation; 2] {
        [
            Operation::named("change")
                .with("amount", effect.amount)
                .with("account", effect.account),
            Operation::named("entry")
                .with("request", self.request.as_str())
                .with("part", effect.part.as_str())
                .with("account", effect.account)
                .with("amount", effect.amount),
        ]
    }

    /// As one request.
    pub(crate) fn submission(&self, client: &Client, plan: &Plan, decided: bool) -> Submission {
        let mut submission = client
            .transaction()
            .request_id(&self.request)
            .timeout(TIMEOUT)
            .retry_for(self.patience);
        for (bank, operations) in self.operations() {
            submission = submission.branch(&plan.banks[bank], operations);
        }
        match decided {
            true => submission.answer_when_decided(),
            false => submission,
        }
    }

    /// As a saga.
    pub(crate) fn saga(&self, client: &Client, plan: &Plan, doomed: bool) -> SagaSubmission {
        let deed = |part: &str| {
            Operation::named("deed")
                .with("request", self.request.as_str())
                .with("part", part)
        };
        let step = |step: Step, effect: &Effect| {
            step.at(&plan.banks[effect.bank])
                .backoff(Duration::from_millis(50), Duration::from_secs(1))
                .attempt_timeout(Duration::from_secs(2))
                .max_attempts(1_000)
        };
        let [first, pivot, last] = &self.effects[..] else {
            unreachable!("a saga has three steps")
        };
        let first = step(Step::new("first"), first)
            .run(deed("do:first"))
            .compensate(deed("undo:first"));
        let pivot = step(Step::pivot("pivot"), pivot).run(match doomed {
            true => Operation::named("refuse").with("account", -1),
            false => deed("do:pivot"),
        });
        let last = step(Step::retriable("last"), last).run(deed("do:last"));
        let saga = client.saga().request_id(&self.request);
        saga.timeout(TIMEOUT)
            .retry_for(self.patience)
            .step(first)
            .step(pivot)
            .step(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64) -> Plan {
        Plan {
            seed,
            banks: ["a", "b", "c"].map(str::to_owned).into(),
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_work() {
        let draw = |seed| (0..50).map(move |number| format!("{:?}", plan(seed).work(number)));
        assert!(draw(1).eq(draw(1)));
        assert!(!draw(1).eq(draw(2)));
    }

    #[test]
    fn money_only_moves() {
        for number in 0..1_000 {
            let work = plan(1).work(number);
            let sum: i64 = work.effects.iter().map(|effect| effect.amount).sum();
            assert_eq!(sum, 0, "{work:?}");
        }
    }

    #[test]
    fn an_account_is_there() {
        for number in 0..1_000 {
            for effect in plan(1).work(number).effects {
                assert!((0..=ACCOUNTS).contains(&effect.account), "{effect:?}");
            }
        }
    }
}
