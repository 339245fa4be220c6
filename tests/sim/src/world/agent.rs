//! An agent: one process around a database. It works at many branches at once, at the messages of one branch in order; it remembers what it has
//! aborted, until it dies. Its work runs to its end even if the session that brought it is gone.

use std::collections::BTreeMap;

use unanimity_engine::{
    AbortCode, AbortReason, BranchKey, Completion, Downward, Payload, StepOutcome, Upward, Vote,
};

use super::{World, event::Event, event::Work as Job, network::Side};
use crate::{
    database::{Step, because},
    fact::key_of,
    plan::{Mishap, Way},
    work::Work,
};

/// What dies with the process.
#[derive(Debug, Default)]
pub(super) struct Agent {
    pub(super) life: u32,
    pub(super) up: bool,
    pub(super) link: Option<usize>,
    pub(super) partitioned_until: u64,
    /// Branches that do work and were not asked for their vote yet.
    open: BTreeMap<BranchKey, Work>,
    /// The last operation of each that was executed: one that comes twice is answered twice, and runs once.
    executed: BTreeMap<BranchKey, u64>,
    /// What a late prepare is told.
    ended: BTreeMap<BranchKey, Vote>,
    /// When the work on a branch that was taken on ends.
    busy: BTreeMap<BranchKey, u64>,
    /// The last answer about a step, by session: a message that came twice is answered twice, and worked at once.
    answered: BTreeMap<(usize, BranchKey), (u32, StepOutcome)>,
}

impl World {
    pub(super) fn agent_starts(&mut self, site: usize, agent: usize) {
        let process = &mut self.sites[site].agents[agent];
        process.up = true;
        let life = process.life;
        self.events.at(self.now, Event::Dials { site, agent, life });
    }

    /// The process dies. `late`: what it had sent to its database takes effect all the same.
    pub(super) fn agent_dies(&mut self, site: usize, agent: usize, late: bool) {
        let process = &mut self.sites[site].agents[agent];
        let (life, partitioned_until) = (process.life + 1, process.partitioned_until);
        let ended = std::mem::take(&mut process.ended);
        *process = Agent {
            life,
            partitioned_until,
            ..Agent::default()
        };
        let links = &self.links;
        self.events.retain(|event| match event {
            Event::Works(job) => {
                let link = &links[job.link];
                let own = (link.site, link.agent) == (site, agent) && !job.late;
                let changes = match &job.message {
                    // One that it had voted on was not sent to the database again.
                    Downward::Prepare { key, .. } => !ended.contains_key(key),
                    Downward::Commit { .. } | Downward::Abort { .. } | Downward::RunStep { .. } => {
                        true
                    }
                    _ => false,
                };
                job.late |= own && changes;
                !own || changes && late
            }
            _ => true,
        });
    }

    /// Its open branches end with the session; prepared ones stay. It dials again.
    pub(super) fn session_lost(&mut self, link: usize) {
        let (site, agent) = (self.links[link].site, self.links[link].agent);
        let process = &mut self.sites[site].agents[agent];
        if process.life != self.links[link].agent_life || process.link != Some(link) {
            return;
        }
        process.link = None;
        for (key, _) in std::mem::take(&mut process.open) {
            process.ended.insert(key, lost());
        }
        let life = process.life;
        let at = self.now + self.network_random.between(10, 300);
        self.events.at(at, Event::Dials { site, agent, life });
    }

    /// Takes a message on.
    pub(super) fn receive(&mut self, link: usize, message: Downward) {
        let (site, agent) = (self.links[link].site, self.links[link].agent);
        let mut takes = self.agent_random.between(0, 5);
        match &message {
            Downward::Welcome(_) => {
                self.links[link].at_agent = Side::Open;
                return;
            }
            Downward::Enlisted { result, .. } => {
                if let Ok(key) = result {
                    self.joins(site, agent, *key);
                }
                return;
            }
            Downward::ListInDoubt => {}
            _ => {
                if let Some(ms) = self.armed.work_is_slow.remove(&site) {
                    self.figures.landed("work_is_slow");
                    takes += ms;
                }
            }
        }
        let mut at = self.now + takes;
        if let Some(key) = key_of(&message) {
            let busy = self.sites[site].agents[agent].busy.entry(key).or_default();
            at = self.now.max(*busy) + takes;
            *busy = at;
        }
        let job = Job {
            link,
            message,
            late: false,
        };
        self.events.at(at, Event::Works(Box::new(job)));
    }

    /// The work is done.
    pub(super) fn works(&mut self, job: Box<Job>) {
        let Job {
            link,
            message,
            late,
        } = *job;
        let site = self.links[link].site;
        let answer = self.answer_to(link, message, late);
        self.note_changes(site);
        let heard = !late && self.links[link].at_agent == Side::Open;
        if let Some(answer) = answer.filter(|_| heard) {
            self.travel(link, Way::Up, |link| Event::Up {
                link,
                message: answer.clone(),
            });
        }
    }

    fn answer_to(&mut self, link: usize, message: Downward, late: bool) -> Option<Upward> {
        let site = self.links[link].site;
        let away = self.sites[site].database.away_until > self.now;
        if away && late {
            return None;
        }
        Some(match message {
            Downward::Prepare { .. } => {
                let (key, vote) = self.prepare(link, message, late, away)?;
                Upward::Vote { key, vote }
            }
            Downward::Commit { key, .. } => Upward::Completion {
                key,
                completion: self.end_branch(link, key, true, late, away),
            },
            Downward::Abort { key, .. } => Upward::Completion {
                key,
                completion: self.end_branch(link, key, false, late, away),
            },
            Downward::Execute {
                key,
                sequence,
                open,
                operation,
                ..
            } => Upward::Executed {
                key,
                sequence,
                result: self.execute(link, (key, sequence), open, &operation, away),
            },
            Downward::RunStep { .. } | Downward::SettleStep { .. } => {
                let (key, attempt, outcome) = self.step_of_saga(link, message, away)?;
                Upward::StepResult {
                    key,
                    attempt,
                    outcome,
                }
            }
            // An empty report would be a lie.
            Downward::ListInDoubt if away => return None,
            Downward::ListInDoubt => Upward::InDoubt(self.sites[site].database.in_doubt()),
            Downward::Prove { key } => Upward::Proof {
                key,
                completion: if away {
                    gone()
                } else {
                    self.sites[site].database.prove(key)
                },
            },
            Downward::Welcome(_) | Downward::Enlisted { .. } => return None,
        })
    }

    fn process(&mut self, link: usize) -> &mut Agent {
        let (site, agent) = (self.links[link].site, self.links[link].agent);
        &mut self.sites[site].agents[agent]
    }

    fn prepare(
        &mut self,
        link: usize,
        message: Downward,
        late: bool,
        away: bool,
    ) -> Option<(BranchKey, Vote)> {
        let Downward::Prepare {
            key,
            continued,
            work,
            one_phase,
            request_id,
            ..
        } = message
        else {
            return None;
        };
        let site = self.links[link].site;
        if late {
            // The statements of a dead process: what it knew of other branches is gone, and nobody hears the vote.
            let whole = Work::decode(&work?);
            let database = &mut self.sites[site].database;
            if one_phase {
                database.commit_in_one_phase(key, &request_id, &whole);
            } else {
                database.prepare(key, whole);
            }
            return None;
        }
        let process = self.process(link);
        if let Some(vote) = process.ended.get(&key) {
            return Some((key, vote.clone()));
        }
        let opened = process.open.remove(&key);
        if opened.is_some() != continued && !self.sites[site].database.is_prepared(key) {
            self.process(link).ended.insert(key, lost());
            return Some((key, lost()));
        }
        let mut whole = opened.unwrap_or_default();
        if let Some(work) = work {
            whole.join(Work::decode(&work));
        }
        let vote = if away {
            Vote::No(because(AbortCode::ParticipantFailure))
        } else if self.armed.conflict.remove(&site) {
            self.figures.landed("conflict");
            Vote::No(because(AbortCode::Conflict))
        } else if one_phase {
            self.sites[site]
                .database
                .commit_in_one_phase(key, &request_id, &whole)
        } else {
            self.sites[site].database.prepare(key, whole)
        };
        self.figures.vote(&vote);
        self.process(link).ended.insert(key, vote.clone());
        Some((key, vote))
    }

    fn end_branch(
        &mut self,
        link: usize,
        key: BranchKey,
        commit: bool,
        late: bool,
        away: bool,
    ) -> Completion {
        let site = self.links[link].site;
        if late {
            let database = &mut self.sites[site].database;
            return if commit {
                database.commit(key)
            } else {
                database.abort(key)
            };
        }
        if !commit && self.process(link).open.remove(&key).is_some() {
            self.process(link).ended.insert(key, lost());
            return Completion::Aborted;
        }
        if away {
            return gone();
        }
        if self.armed.busy.remove(&site) {
            self.figures.landed("busy");
            return Completion::Retry("busy".into());
        }
        self.process(link).ended.insert(key, lost());
        let database = &mut self.sites[site].database;
        if commit {
            database.commit(key)
        } else {
            database.abort(key)
        }
    }

    fn execute(
        &mut self,
        link: usize,
        (key, sequence): (BranchKey, u64),
        open: bool,
        operation: &[u8],
        away: bool,
    ) -> Result<Payload, AbortReason> {
        let site = self.links[link].site;
        let process = self.process(link);
        let before = process.executed.insert(key, sequence).unwrap_or_default();
        if sequence <= before && process.open.contains_key(&key) {
            process.executed.insert(key, before);
            return Ok(rows());
        }
        let known = process.ended.contains_key(&key);
        let found = process.open.remove(&key);
        if known || found.is_some() == open {
            process.ended.entry(key).or_insert_with(lost);
            return Err(because(AbortCode::BranchLost));
        }
        let mut whole = found.unwrap_or_default();
        whole.join(Work::decode(operation));
        let conflict = self.armed.conflict.remove(&site);
        if conflict {
            self.figures.landed("conflict");
        }
        let refused = away || conflict || self.sites[site].database.refuses(&whole);
        let process = self.process(link);
        if refused {
            process.ended.insert(key, lost());
            return Err(because(AbortCode::Refused));
        }
        process.open.insert(key, whole);
        Ok(rows())
    }

    /// A service works in a transaction that it has joined: money moves within its database.
    fn joins(&mut self, site: usize, agent: usize, key: BranchKey) {
        let process = &mut self.sites[site].agents[agent];
        let known = process.ended.contains_key(&key) || process.open.contains_key(&key);
        if known || process.link.is_none() {
            return;
        }
        let mut work = Work::moves(0, -1);
        work.join(Work::moves(1, 1));
        process.open.insert(key, work);
        self.figures.enlisted += 1;
    }

    fn step_of_saga(
        &mut self,
        link: usize,
        message: Downward,
        away: bool,
    ) -> Option<(BranchKey, u32, StepOutcome)> {
        let (Downward::RunStep { key, attempt, .. } | Downward::SettleStep { key, attempt, .. }) =
            message
        else {
            return None;
        };
        let before = self.process(link).answered.get(&(link, key));
        if let Some((last, outcome)) = before.filter(|(last, _)| attempt <= *last) {
            return Some((key, *last, outcome.clone()));
        }
        let outcome = self.try_step(link, message, away)?;
        self.process(link)
            .answered
            .insert((link, key), (attempt, outcome.clone()));
        Some((key, attempt, outcome))
    }

    fn try_step(&mut self, link: usize, message: Downward, away: bool) -> Option<StepOutcome> {
        let site = self.links[link].site;
        if away {
            let first = matches!(message, Downward::RunStep { age_ms: 0, .. });
            return Some(if first {
                StepOutcome::Failed(because(AbortCode::ParticipantFailure))
            } else {
                StepOutcome::Unknown("the database is away".into())
            });
        }
        let mishap = self.armed.step_fails.remove(&site);
        if mishap.is_some() {
            self.figures.landed("step_fails");
        }
        match mishap {
            None => Some(self.do_step(site, message)),
            Some(Mishap::SilentWith) => {
                self.do_step(site, message);
                None
            }
            Some(Mishap::UnknownWith) => {
                self.do_step(site, message);
                Some(StepOutcome::Unknown("perhaps".into()))
            }
            Some(Mishap::SilentWithout) => None,
            Some(Mishap::UnknownWithout) => Some(StepOutcome::Unknown("perhaps".into())),
            Some(Mishap::Works) => Some(StepOutcome::Working("soon".into())),
            Some(Mishap::Fails) => Some(StepOutcome::Failed(because(AbortCode::Conflict))),
        }
    }

    fn do_step(&mut self, site: usize, message: Downward) -> StepOutcome {
        let settles = self.sites[site].shape.settles;
        let database = &mut self.sites[site].database;
        match message {
            Downward::SettleStep { key, .. } => database.settle(key),
            Downward::RunStep {
                key,
                operation,
                compensates,
                locks,
                token,
                ..
            } => {
                let step = Step {
                    key,
                    work: Work::decode(&operation),
                    locks: &locks,
                    token,
                    bound: !settles,
                };
                match compensates {
                    None => database.execute_step(step),
                    Some(compensated) => {
                        let branch = compensated.branch;
                        let action = BranchKey { branch, ..key };
                        database.compensate(step, action, compensated.unsettled)
                    }
                }
            }
            _ => StepOutcome::Unknown("no step".into()),
        }
    }
}

fn rows() -> Payload {
    Payload::from(&b"rows"[..])
}

fn gone() -> Completion {
    Completion::Retry("the database is away".into())
}

fn lost() -> Vote {
    Vote::No(because(AbortCode::BranchLost))
}
