//! What orders there are, and what the world is like when they come: the same ones for the same seed.
//!
//! Bad luck is part of the plan. The bestseller is soon out of stock, there are not enough slots tomorrow, some cards are blocked, and some
//! customers change their minds.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// The item that too many want.
const BESTSELLER: i64 = 1;

/// The day that too many want.
const TOMORROW: i64 = 1;

const ITEMS: i64 = 10;
const DAYS: i64 = 7;
const QUANTITIES: std::ops::RangeInclusive<i64> = 1..=3;

/// The cards of customers whose number this divides are blocked.
const BLOCKED: i64 = 20;

/// What each card is good for: more than anybody spends here.
pub(crate) const CARD_CENTS: i64 = 1_000_000_000;

/// One customer's order of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) number: u64,
    /// Also the number of the card.
    pub(crate) customer: i64,
    pub(crate) item: i64,
    pub(crate) quantity: i64,
    pub(crate) cents: i64,
    /// Of the delivery.
    pub(crate) day: i64,
    /// The customer cancels it so long after it began.
    pub(crate) cancelled_after: Option<Duration>,
}

/// Which orders.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) orders: u64,
    pub(crate) customers: u32,
}

impl Plan {
    pub(crate) fn order(&self, number: u64) -> Order {
        let mut random =
            StdRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut or_popular = |popular: i64, all: i64| match random.random_ratio(1, 10) {
            true => popular,
            false => random.random_range(popular + 1..=all),
        };
        let (item, day) = (or_popular(BESTSELLER, ITEMS), or_popular(TOMORROW, DAYS));
        let quantity = random.random_range(QUANTITIES);
        Order {
            number,
            customer: random.random_range(1..=i64::from(self.customers)),
            item,
            quantity,
            cents: quantity * random.random_range(100..5_000),
            day,
            cancelled_after: random
                .random_ratio(1, 10)
                .then(|| Duration::from_millis(random.random_range(0..100))),
        }
    }

    /// How many there are of each item, by its number: of the bestseller half of what will be wanted.
    pub(crate) fn stock(&self) -> Vec<(i64, i64)> {
        let orders = self.orders.cast_signed();
        let on_hand = |item| match item {
            BESTSELLER => orders / 10,
            _ => orders * QUANTITIES.end(),
        };
        (1..=ITEMS).map(|item| (item, on_hand(item))).collect()
    }

    /// How many slots there are on each day: tomorrow half of what will be wanted.
    pub(crate) fn slots(&self) -> Vec<(i64, i64)> {
        let orders = self.orders.cast_signed();
        let room = |day| match day {
            TOMORROW => orders / 20,
            _ => orders,
        };
        (1..=DAYS).map(|day| (day, room(day))).collect()
    }

    /// Each card, and whether it is blocked.
    pub(crate) fn cards(&self) -> Vec<(i64, bool)> {
        let cards = 1..=i64::from(self.customers);
        cards.map(|card| (card, card % BLOCKED == 0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_orders_some_of_them_unlucky() {
        let orders = |seed| -> Vec<Order> {
            let plan = Plan {
                seed,
                orders: 500,
                customers: 40,
            };
            (0..500).map(|number| plan.order(number)).collect()
        };
        assert_eq!(orders(1), orders(1));
        assert_ne!(orders(1), orders(2));
        let unlucky: [fn(&Order) -> bool; 4] = [
            |order| order.item == BESTSELLER,
            |order| order.day == TOMORROW,
            |order| order.customer % BLOCKED == 0,
            |order| order.cancelled_after.is_some(),
        ];
        for unlucky in unlucky {
            let count = orders(3).iter().filter(|order| unlucky(order)).count();
            assert!((10..100).contains(&count), "{count}");
        }
    }
}
