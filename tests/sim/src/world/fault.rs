//! Faults of the plan. Some strike at once; others wait, armed, for what they are to hit. One that hits nothing has not landed.

use std::collections::{BTreeMap, BTreeSet};

use unanimity_engine::{BranchKey, Found, Input, TransactionId};

use super::{LOG, World, client::Purpose, coordinator::Death, event::Event, network::Side};
use crate::plan::{Act, Fault, HEALS_MS, Mishap, Way};

/// Faults that wait for what they are to hit.
#[derive(Debug, Default)]
pub(super) struct Armed {
    pub(super) sync_fails: Option<Death>,
    pub(super) sync_is_slow: Option<u64>,
    pub(super) work_is_slow: BTreeMap<usize, u64>,
    pub(super) busy: BTreeSet<usize>,
    pub(super) conflict: BTreeSet<usize>,
    pub(super) step_fails: BTreeMap<usize, Mishap>,
    pub(super) reply_lost: bool,
    pub(super) call_lost: bool,
    up: BTreeMap<usize, Hit>,
    down: BTreeMap<usize, Hit>,
}

/// What befalls a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hit {
    Dropped,
    Doubled(u64),
    Delayed(u64),
}

impl Armed {
    pub(super) fn message(&mut self, site: usize, way: Way) -> Option<Hit> {
        self.way(way).remove(&site)
    }

    fn way(&mut self, way: Way) -> &mut BTreeMap<usize, Hit> {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

impl World {
    /// A fault of the plan.
    pub(super) fn befall(&mut self, entry: usize) {
        let number = self.plan.entries[entry].number;
        let Act::Fault(fault) = self.plan.entries[entry].act else {
            return;
        };
        self.trace
            .note(self.now, || format!("-- {number}: {fault:?}"));
        self.strike(fault.until(HEALS_MS - self.now));
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::CoordinatorDies {
                down_ms,
                keeps,
                again,
                noticed_ms,
            } => {
                let death = Death {
                    down_ms,
                    keeps,
                    noticed_ms,
                    drained_by: 0,
                };
                self.coordinator_dies(death, again);
            }
            Fault::SyncFails { down_ms, keeps } => {
                self.armed.sync_fails = Some(Death {
                    down_ms,
                    keeps,
                    noticed_ms: 1,
                    drained_by: 0,
                });
            }
            Fault::SyncIsSlow { ms } => self.armed.sync_is_slow = Some(ms),
            Fault::Drains { down_ms } => self.begin_drain(down_ms),
            Fault::Checkpoints => {
                if self.serving {
                    self.figures.landed("checkpoints");
                    self.feed(Input::Checkpoint);
                }
            }
            Fault::AgentDies {
                site,
                agent,
                down_ms,
                noticed_ms,
                late,
            } => self.kill_agent((site, agent), down_ms, noticed_ms, late),
            Fault::SessionBreaks {
                site,
                agent,
                up_ms,
                down_ms,
            } => {
                if let Some(link) = self.sites[site].agents[agent].link {
                    self.figures.landed("session_breaks");
                    self.break_session(link, up_ms, down_ms);
                }
            }
            Fault::Partition { site, agent, ms } => self.partition(site, agent, ms),
            Fault::DatabaseAway { site, ms } => {
                self.figures.landed("database_away");
                let database = &mut self.sites[site].database;
                database.away_until = database.away_until.max(self.now + ms);
            }
            Fault::Drop { site, way } => self.arm(site, way, Hit::Dropped),
            Fault::Duplicate {
                site,
                way,
                after_ms,
            } => self.arm(site, way, Hit::Doubled(after_ms)),
            Fault::Delay { site, way, ms } => self.arm(site, way, Hit::Delayed(ms)),
            Fault::WorkIsSlow { site, ms } => _ = self.armed.work_is_slow.insert(site, ms),
            Fault::Busy { site } => _ = self.armed.busy.insert(site),
            Fault::Conflict { site } => _ = self.armed.conflict.insert(site),
            Fault::StepFails { site, mishap } => {
                self.armed.step_fails.insert(site, mishap);
            }
            Fault::ByHand { site, commit } => self.end_by_hand(site, commit),
            Fault::Foreign { site, newer } => self.plant(site, newer),
            Fault::ReplyLost => self.armed.reply_lost = true,
            Fault::CallLost => self.armed.call_lost = true,
            Fault::OperatorRetries => self.operator_retries(),
            Fault::OperatorResolves { commit } => self.operator_resolves(commit),
            Fault::OperatorResolvesStep => self.operator_resolves_step(),
            Fault::Cancel => self.cancel(),
            Fault::Lookup => self.look_up(),
        }
    }

    fn arm(&mut self, site: usize, way: Way, hit: Hit) {
        self.armed.way(way).insert(site, hit);
    }

    fn coordinator_dies(&mut self, death: Death, again: u8) {
        if self.engine.is_some() {
            self.figures.landed("coordinator_dies");
            self.death = death;
            self.dies_again = again;
            self.die();
        }
    }

    fn kill_agent(&mut self, at: (usize, usize), down_ms: u64, noticed_ms: u64, late: bool) {
        let (site, agent) = at;
        let process = &self.sites[site].agents[agent];
        if !process.up {
            return;
        }
        self.figures.landed("agent_dies");
        if let Some(link) = process.link {
            self.cut(link);
            self.links[link].at_agent = Side::Closed;
            self.events
                .at(self.now + noticed_ms, Event::CoordinatorNotices(link));
        }
        self.agent_dies(site, agent, late);
        self.events
            .at(self.now + down_ms, Event::AgentStarts { site, agent });
    }

    /// A side that hears nothing for long enough gives the session up; the other may not have noticed when the network is back.
    fn partition(&mut self, site: usize, agent: usize, ms: u64) {
        self.figures.landed("partition");
        let until = self.now + ms;
        let process = &mut self.sites[site].agents[agent];
        process.partitioned_until = process.partitioned_until.max(until);
        let Some(link) = process.link else { return };
        let patience = |random: &mut crate::random::Random| random.between(2_000, 8_000);
        let up_ms = patience(&mut self.network_random);
        let down_ms = patience(&mut self.network_random);
        if up_ms.min(down_ms) < ms {
            self.break_session(link, up_ms, down_ms);
        }
    }

    /// Somebody ends a prepared branch at the database's console.
    fn end_by_hand(&mut self, site: usize, commit: bool) {
        let key = self.sites[site].database.prepared().next();
        if let Some(key) = key {
            self.figures.landed("by_hand");
            self.sites[site].database.by_hand(key, commit);
            self.note_changes(site);
        }
    }

    /// A prepared branch that is not ours: of another log, or of an incarnation that this log has not come to yet.
    fn plant(&mut self, site: usize, newer: bool) {
        let Some(engine) = &self.engine else { return };
        let own = engine.incarnation();
        let foreign = self.sites[site].database.foreign.len() as u128;
        let transaction = if newer {
            TransactionId {
                log: LOG,
                epoch: unanimity_engine::Epoch(own.epoch.0 + 1_000),
                unique: foreign,
            }
        } else {
            TransactionId {
                log: unanimity_engine::LogId(7),
                epoch: own.epoch,
                unique: foreign,
            }
        };
        let key = BranchKey {
            transaction,
            branch: 1,
        };
        self.figures.landed("foreign_branch");
        self.sites[site].database.foreign.push(Found {
            identifier: key.to_string(),
            key: Some(key),
        });
    }

    fn some_transaction(&mut self) -> Option<TransactionId> {
        let at = self.client_random.below(self.known.len());
        // The newest are the likeliest to be on their way.
        let back = self.client_random.below(6).min(self.known.len());
        let recent = self.known.len().checked_sub(1 + back);
        let at = recent
            .filter(|_| self.client_random.below(4) > 0)
            .unwrap_or(at);
        self.known.get(at).copied()
    }

    fn cancel(&mut self) {
        if let Some(transaction) = self.some_transaction() {
            self.figures.landed("cancel");
            let ticket = self.ticket(Purpose::Bystander);
            let reason = crate::database::because(unanimity_engine::AbortCode::Client);
            self.send_call(
                ticket,
                Input::Abort {
                    ticket,
                    transaction,
                    reason,
                },
            );
        }
    }

    fn look_up(&mut self) {
        if let Some(transaction) = self.some_transaction() {
            self.figures.landed("lookup");
            let ticket = self.ticket(Purpose::Bystander);
            self.send_call(
                ticket,
                Input::Lookup {
                    ticket,
                    transaction,
                },
            );
        }
    }

    pub(super) fn operator_retries(&mut self) {
        if let Some(transaction) = self.some_transaction() {
            self.figures.landed("operator_retries");
            let ticket = self.ticket(Purpose::Bystander);
            self.send_call(
                ticket,
                Input::Retry {
                    ticket,
                    transaction,
                },
            );
        }
    }
}
