//! Whether every order is whole, or wholly undone: by the logs that the participants keep in their own databases, and by nothing else.
//!
//! What the coordinator believes is not asked. The logs are compared with each other, with what the customers were told, and with what is left of
//! stock, money and slots.

use std::collections::BTreeMap;

use crate::{
    database::Event,
    orders::Told,
    plan::{Order, Plan},
};

/// All that was found when everything was over.
pub(crate) struct Evidence<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) told: &'a BTreeMap<u64, Option<Told>>,
    /// The entries of all logs.
    pub(crate) events: Vec<Event>,
    pub(crate) before: Holdings,
    pub(crate) after: Holdings,
}

/// What there is of what orders use up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// Items on hand, those reserved among them.
    pub(crate) items: i64,
    pub(crate) reserved: i64,
    /// Money on the cards.
    pub(crate) cents: i64,
    /// Delivery slots that are not booked.
    pub(crate) slots: i64,
}

/// What is wrong, each in a sentence; nothing, if all is well.
pub(crate) fn problems(evidence: &Evidence<'_>) -> Vec<String> {
    let mut orders: BTreeMap<i64, Vec<&Event>> = BTreeMap::new();
    for event in &evidence.events {
        orders.entry(event.order_number).or_default().push(event);
    }
    let mut problems = Vec::new();
    for (number, told) in evidence.told {
        let events = orders.remove(&number.cast_signed()).unwrap_or_default();
        let trace = Trace {
            order: evidence.plan.order(*number),
            events,
        };
        if let Err(problem) = trace.check(*told) {
            problems.push(format!("order {number}: {problem}: {}", trace.describe()));
        }
    }
    problems.extend(orders.keys().map(|number| {
        format!("order {number}: nobody placed it, and yet something was done for it")
    }));
    problems.extend(sums(evidence));
    problems
}

/// What is missing must be what the logs say was used.
fn sums(evidence: &Evidence<'_>) -> Vec<String> {
    let sum = |name: &str| -> i64 {
        let events = evidence.events.iter().filter(|event| event.event == name);
        events.map(|event| event.subject).sum()
    };
    let count = |name: &str| -> i64 {
        let events = evidence.events.iter().filter(|event| event.event == name);
        events.count() as i64
    };
    let (before, after) = (evidence.before, evidence.after);
    let sums = [
        ("items", before.items - after.items, sum("taken")),
        ("cents", before.cents - after.cents, sum("captured")),
        (
            "slots",
            before.slots - after.slots,
            count("booked") - count("freed"),
        ),
        ("reserved items", after.reserved, 0),
    ];
    let wrong = sums
        .into_iter()
        .filter(|(_, missing, used)| missing != used);
    wrong
        .map(|(what, missing, used)| format!("{missing} {what} are gone, where {used} should be"))
        .collect()
}

/// What was done for an order.
struct Trace<'a> {
    order: Order,
    events: Vec<&'a Event>,
}

/// Times in a row, each with its name.
type Row<'a> = Vec<(&'a str, i64)>;

impl Trace<'_> {
    fn check(&self, told: Option<Told>) -> Result<(), String> {
        self.check_purchases()?;
        match told {
            Some(Told::Completed) => self.check_whole(),
            Some(Told::Compensated) => self.check_undone(),
            Some(Told::Aborted) if self.events.is_empty() => Ok(()),
            Some(Told::Aborted) => Err("it was said never to have begun".into()),
            Some(Told::Heuristic) => Err("it went against what was decided".into()),
            Some(Told::Unknown) | None => Err("its outcome is unknown".into()),
        }
    }

    /// Everything was done once, one after the other, with what the order says.
    fn check_whole(&self) -> Result<(), String> {
        self.lacks(&["cancelled", "freed"])?;
        let placed = self.one("placed")?;
        let booked = self.one("booked")?;
        let taken = self.one("taken")?;
        let captured = self.one("captured")?;
        let shipped = self.one("shipped")?;
        let confirmed = self.one("confirmed")?;
        for purchase in [taken, captured] {
            let held = ["reserved", "authorised"];
            let held = self.events.iter().find(|event| {
                held.contains(&event.event.as_str()) && event.branch == purchase.branch
            });
            let held = held.ok_or("something was bought that was not held before")?;
            in_order(vec![
                ("placed", placed.time_ms),
                ("booked", booked.time_ms),
                ("held", held.time_ms),
                ("shipped", shipped.time_ms),
                ("confirmed", confirmed.time_ms),
            ])?;
        }
        let facts = [
            ("customer", placed.subject, self.order.customer),
            ("day booked", booked.subject, self.order.day),
            ("quantity", taken.subject, self.order.quantity),
            ("amount", captured.subject, self.order.cents),
            ("day shipped", shipped.subject, booked.subject),
            ("shipment", confirmed.subject, shipped.number),
        ];
        match facts.iter().find(|(_, found, meant)| found != meant) {
            Some((what, found, meant)) => Err(format!("the {what} is {found}, not {meant}")),
            None => Ok(()),
        }
    }

    /// What was done is a beginning of the whole, and was undone from its end.
    fn check_undone(&self) -> Result<(), String> {
        self.lacks(&["taken", "captured", "shipped", "confirmed"])?;
        let mut row = Row::new();
        for (done, undone) in [("placed", "cancelled"), ("booked", "freed")] {
            if self.count(done) == 0 {
                self.lacks(&[undone])?;
                break;
            }
            let middle = row.len() / 2;
            let pair = [done, undone].map(|name| self.one(name).map(|event| (name, event.time_ms)));
            let [done, undone] = pair;
            row.splice(middle..middle, [done?, undone?]);
        }
        if self.count("booked") == 0 {
            self.lacks(&["freed", "reserved", "authorised"])?;
        }
        if self.count("placed") == 0 {
            self.lacks(&["booked"])?;
        }
        in_order(row)
    }

    /// Each attempt at the purchase took and charged, or did neither, and left nothing held.
    fn check_purchases(&self) -> Result<(), String> {
        let mut branches: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for event in self.events.iter().filter(|event| !event.branch.is_empty()) {
            let branch = branches.entry(&event.branch).or_default();
            branch.push(&event.event);
        }
        let mut attempts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (branch, events) in branches {
            let (attempt, _) = branch.rsplit_once('.').unwrap_or((branch, ""));
            match events[..] {
                ["reserved", "released"] | ["authorised", "voided"] => {}
                ["reserved", bought @ "taken"] | ["authorised", bought @ "captured"] => {
                    attempts.entry(attempt).or_default().push(bought);
                }
                _ => return Err(format!("branch {branch} was {}", events.join(", "))),
            }
        }
        match attempts.values().find(|bought| bought.len() != 2) {
            Some(bought) => Err(format!("something was {}, and no more", bought.join(", "))),
            None => Ok(()),
        }
    }

    fn count(&self, name: &str) -> usize {
        let events = self.events.iter();
        events.filter(|event| event.event == name).count()
    }

    fn one(&self, name: &str) -> Result<&Event, String> {
        let mut events = self.events.iter().filter(|event| event.event == name);
        match (events.next(), events.next()) {
            (Some(event), None) => Ok(event),
            (None, _) => Err(format!("it was not {name}")),
            (Some(_), Some(_)) => Err(format!("it was {name} more than once")),
        }
    }

    fn lacks(&self, names: &[&str]) -> Result<(), String> {
        match names.iter().find(|name| self.count(name) > 0) {
            Some(name) => Err(format!("it was {name}")),
            None => Ok(()),
        }
    }

    /// For a human.
    fn describe(&self) -> String {
        let mut events = self.events.clone();
        events.sort_by_key(|event| event.time_ms);
        let event = |event: &&Event| {
            format!(
                "{} {} at {} {}",
                event.event, event.subject, event.time_ms, event.branch
            )
        };
        events.iter().map(event).collect::<Vec<_>>().join("; ")
    }
}

fn in_order(row: Row<'_>) -> Result<(), String> {
    match row.windows(2).find(|pair| pair[0].1 > pair[1].1) {
        Some(pair) => Err(format!("it was {} before it was {}", pair[1].0, pair[0].0)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan {
        seed: 1,
        orders: 10,
        customers: 5,
    };
    const GONE: i64 = 3;

    /// One after the other in time: event, subject, branch.
    fn events(of: &[(&str, i64, &str)]) -> Vec<Event> {
        let event = |(number, (event, subject, branch)): (i64, &(&str, i64, &str))| Event {
            number,
            order_number: 0,
            event: (*event).into(),
            subject: *subject,
            branch: (*branch).into(),
            time_ms: number * 10,
        };
        (1..).zip(of).map(event).collect()
    }

    /// An order that was paid for at the second attempt.
    fn whole() -> Vec<Event> {
        let order = PLAN.order(0);
        events(&[
            ("placed", order.customer, ""),
            ("booked", order.day, ""),
            ("reserved", order.quantity, "a.1"),
            ("released", order.quantity, "a.1"),
            ("reserved", order.quantity, "b.1"),
            ("authorised", order.cents, "b.2"),
            ("captured", order.cents, "b.2"),
            ("taken", order.quantity, "b.1"),
            ("shipped", order.day, ""),
            ("confirmed", 9, ""),
        ])
    }

    /// An order that was not paid for.
    fn undone() -> Vec<Event> {
        let order = PLAN.order(0);
        events(&[
            ("placed", order.customer, ""),
            ("booked", order.day, ""),
            ("authorised", order.cents, "a.2"),
            ("voided", order.cents, "a.2"),
            ("freed", order.day, ""),
            ("cancelled", order.customer, ""),
        ])
    }

    fn judge(told: Told, events: Vec<Event>) -> Vec<String> {
        let order = PLAN.order(0);
        let is_whole = told == Told::Completed;
        let before = Holdings {
            items: 100,
            reserved: 0,
            cents: 1_000_000,
            slots: 50,
        };
        let after = Holdings {
            items: before.items - if is_whole { order.quantity } else { 0 },
            cents: before.cents - if is_whole { order.cents } else { 0 },
            slots: before.slots - i64::from(is_whole),
            ..before
        };
        problems(&Evidence {
            plan: &PLAN,
            told: &[(0, Some(told))].into(),
            events,
            before,
            after,
        })
    }

    fn at<'a>(events: &'a mut [Event], name: &str) -> &'a mut Event {
        let mut events = events.iter_mut().rev();
        events.find(|event| event.event == name).unwrap()
    }

    #[test]
    fn orders_that_are_whole_or_wholly_undone_are_well() {
        assert_eq!(judge(Told::Completed, whole()), [""; 0]);
        assert_eq!(judge(Told::Compensated, undone()), [""; 0]);
        assert_eq!(judge(Told::Compensated, vec![]), [""; 0]);
        assert_eq!(judge(Told::Aborted, vec![]), [""; 0]);
    }

    #[test]
    fn whatever_is_missing_or_there_twice_is_found() {
        for (told, good) in [(Told::Completed, whole()), (Told::Compensated, undone())] {
            for index in 0..good.len() {
                let mut missing = good.clone();
                let gone = missing.remove(index).event;
                assert_ne!(judge(told, missing), [""; 0], "{gone} is missing");
                let mut doubled = good.clone();
                doubled.push(good[index].clone());
                assert_ne!(judge(told, doubled), [""; 0], "{gone} stands there twice");
            }
        }
    }

    #[test]
    fn a_wrong_order_of_things_is_found() {
        let late = |mut events: Vec<Event>, name: &str| {
            at(&mut events, name).time_ms = 1_000;
            events
        };
        for name in ["placed", "booked", "reserved", "authorised", "shipped"] {
            let found = judge(Told::Completed, late(whole(), name));
            assert_eq!(found.len(), 1, "{name}: {found:?}");
        }
        for name in ["placed", "booked", "freed"] {
            let found = judge(Told::Compensated, late(undone(), name));
            assert_eq!(found.len(), 1, "{name}: {found:?}");
        }
    }

    #[test]
    fn what_is_said_must_be_what_was_done() {
        let all = [
            Told::Completed,
            Told::Compensated,
            Told::Aborted,
            Told::Heuristic,
            Told::Unknown,
        ];
        for told in all {
            let whole = judge(told, whole());
            assert_eq!(whole.is_empty(), told == Told::Completed, "{whole:?}");
            let undone = judge(told, undone());
            assert_eq!(undone.is_empty(), told == Told::Compensated, "{undone:?}");
        }
    }

    #[test]
    fn what_steps_hand_on_must_arrive() {
        for name in [
            "placed",
            "booked",
            "taken",
            "captured",
            "shipped",
            "confirmed",
        ] {
            let mut wrong = whole();
            at(&mut wrong, name).subject += GONE;
            assert_ne!(judge(Told::Completed, wrong), [""; 0], "{name}");
        }
    }

    #[test]
    fn half_a_purchase_is_found() {
        let mut other = whole();
        at(&mut other, "taken").branch = "a.1".into();
        assert_ne!(judge(Told::Completed, other), [""; 0]);
        let mut left = undone();
        left.retain(|event| event.event != "voided");
        assert_ne!(judge(Told::Compensated, left), [""; 0]);
    }

    #[test]
    fn what_nobody_ordered_is_found() {
        let mut stray = whole();
        stray.extend(undone().into_iter().map(|event| Event {
            order_number: 77,
            ..event
        }));
        assert_eq!(judge(Told::Completed, stray).len(), 1);
    }
}
