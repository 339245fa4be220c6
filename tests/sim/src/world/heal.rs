//! The end of a life: faults stop, and everything must come to rest.

use super::{World, event::Event, fault::Armed};
use crate::fact::{End, Fact};

/// So long after the end of all faults, everything must have come to rest.
const PATIENCE_MS: u64 = 300_000;
/// And so long it is watched at rest: long enough for a scan, and for the records that nothing waits for.
const REST_MS: u64 = 5_000;

impl World {
    /// No fault any more: everything is up and connected, or soon will be. Clients go on by their own patience.
    pub(super) fn heal(&mut self) {
        self.healed_at = Some(self.now);
        self.armed = Armed::default();
        self.dies_again = 0;
        for site in 0..self.sites.len() {
            self.sites[site].database.away_until = self.now;
            for agent in 0..self.sites[site].agents.len() {
                self.sites[site].agents[agent].partitioned_until = self.now;
                if !self.sites[site].agents[agent].up {
                    self.agent_starts(site, agent);
                }
            }
        }
        for link in 0..self.links.len() {
            if self.links[link].is_broken() {
                self.break_session(link, 1, 1);
            }
        }
        if self.engine.is_none() {
            self.events.at(self.now, Event::Starts);
        }
        self.fact(&Fact::Healed);
        self.events.at(self.now, Event::Operates);
    }

    /// Nothing is on its way any more, or it takes too long.
    pub(super) fn is_over(&mut self) -> bool {
        let Some(healed) = self.healed_at else {
            return false;
        };
        if self.now > healed + PATIENCE_MS {
            return true;
        }
        let busy = self.now < healed + REST_MS || !self.is_at_rest();
        if busy {
            self.busy_at = self.now;
        }
        self.now >= self.busy_at + REST_MS
    }

    fn is_at_rest(&self) -> bool {
        let ended = self.engine.as_ref().is_some_and(|e| e.in_flight() == 0);
        let prepared = |site: &super::Site| site.database.prepared().next().is_some();
        ended
            && self.disk.is_idle()
            && !self.sites.iter().any(prepared)
            && self.clients.iter().all(|c| c.is_done())
    }

    /// How things stand.
    pub(super) fn end(&mut self) -> End {
        self.figures.settled_ms = self
            .busy_at
            .saturating_sub(self.healed_at.unwrap_or(self.now));
        let prepared = self.sites.iter().enumerate().flat_map(|(at, site)| {
            let found = site.database.in_doubt();
            found.into_iter().map(move |found| (at, found))
        });
        let unserved = self.clients.iter().filter(|c| !c.is_done());
        let money = self.sites.iter().map(|s| s.database.money()).sum();
        let first = self.sites.len() * crate::plan::ACCOUNTS * 100;
        let mut end = End {
            prepared: prepared.collect(),
            unserved: unserved.map(|c| c.describe()).collect(),
            money: (first as i64, money),
            ..End::default()
        };
        let Some(engine) = &self.engine else {
            end.unserved.push("the coordinator is down".into());
            return end;
        };
        end.untouchable = engine
            .in_doubt()
            .into_iter()
            .map(|view| view.identifier)
            .collect();
        end.in_flight = engine.in_flight();
        end.undelivered = engine.undelivered();
        end.locks = engine.locks(None).count();
        let participants = engine.participants();
        let used = participants
            .iter()
            .flat_map(|p| &p.sessions)
            .map(|s| s.used);
        end.slots = (used.sum(), participants.iter().map(|p| p.waiting).sum());
        end.views = engine.transactions(None).collect();
        end
    }
}
