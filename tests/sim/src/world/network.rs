//! The network: sessions that agents open, and what happens to the messages on them.
//!
//! A session is a stream: its messages arrive in order, and it ends as a whole, which its two sides notice at different times. A message can be lost,
//! doubled or overtaken all the same, where a fault of the plan says so: the protocol absorbs that.

use unanimity_engine::{Downward, Found, Input, Opened, SessionId, Upward};

use super::{World, event::Event};
use crate::{
    fact::{Fact, key_heard},
    plan::Way,
    trace::{downward, upward},
};

/// How one side sees a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The hello is on its way.
    Opening,
    Open,
    Closed,
}

/// One session. Its number is its index among all that there ever were.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) site: usize,
    pub(super) agent: usize,
    /// Incarnations of the two processes that it joins.
    pub(super) agent_life: u32,
    pub(super) coordinator_life: u32,
    pub(super) at_agent: Side,
    pub(super) coordinator: Side,
    /// When the last message arrives, each way.
    up_last: u64,
    down_last: u64,
    /// What arrives later is lost.
    cut_at: Option<u64>,
}

impl Link {
    /// It is over, whatever its sides know of that.
    pub(super) fn is_broken(&self) -> bool {
        self.cut_at.is_some()
    }
}

impl World {
    pub(super) fn latency(&mut self) -> u64 {
        let (least, most) = self.plan.shape.latency;
        self.network_random.between(least, most)
    }

    /// Sends a message on its way, if nothing befalls it.
    pub(super) fn travel(&mut self, link: usize, way: Way, event: impl Fn(usize) -> Event) {
        let Link { site, agent, .. } = self.links[link];
        let partitioned = self.sites[site].agents[agent].partitioned_until;
        let usual = self.now.max(partitioned) + self.latency();
        let last = match way {
            Way::Up => &mut self.links[link].up_last,
            Way::Down => &mut self.links[link].down_last,
        };
        let in_order = usual.max(*last);
        let welcome = matches!(
            event(link),
            Event::Down {
                message: Downward::Welcome(_),
                ..
            }
        );
        let hit = if welcome {
            None
        } else {
            self.armed.message(site, way)
        };
        match hit {
            None => {
                *last = in_order;
                self.events.at(in_order, event(link));
            }
            Some(super::fault::Hit::Dropped) => {
                self.figures.landed("message_dropped");
                self.trace.note(self.now, || {
                    format!("lost on s{link}: {}", coming(&event(link)))
                });
            }
            Some(super::fault::Hit::Doubled(after)) => {
                self.figures.landed("message_duplicated");
                *last = in_order;
                self.events.at(in_order, event(link));
                self.events.at(in_order + after, event(link));
            }
            Some(super::fault::Hit::Delayed(by)) => {
                self.figures.landed("message_delayed");
                // Not `last`: those that follow overtake it.
                self.events.at(in_order + by, event(link));
            }
        }
    }

    /// The session breaks: of what is on its way a little may still arrive.
    pub(super) fn cut(&mut self, link: usize) {
        if self.links[link].cut_at.is_none() {
            let at = self.now + self.network_random.between(0, self.plan.shape.latency.1);
            self.links[link].cut_at = Some(at);
        }
    }

    fn is_cut(&self, link: usize) -> bool {
        self.links[link].cut_at.is_some_and(|at| self.now > at)
    }

    /// An agent opens a session, if it can.
    pub(super) fn dial(&mut self, site: usize, agent: usize, life: u32) {
        let process = &self.sites[site].agents[agent];
        if process.life != life || !process.up || process.link.is_some() {
            return;
        }
        let reachable = self.serving
            && process.partitioned_until <= self.now
            && self.sites[site].database.away_until <= self.now;
        if !reachable {
            let at = self.now + self.network_random.between(50, 500);
            return self.events.at(at, Event::Dials { site, agent, life });
        }
        let link = self.links.len();
        self.links.push(Link {
            site,
            agent,
            agent_life: life,
            coordinator_life: self.life,
            at_agent: Side::Opening,
            coordinator: Side::Opening,
            up_last: 0,
            down_last: 0,
            cut_at: None,
        });
        self.sites[site].agents[agent].link = Some(link);
        let in_doubt = self.sites[site].database.in_doubt();
        let at = self.now + self.latency();
        self.links[link].up_last = at;
        self.events.at(at, Event::Hello { link, in_doubt });
    }

    pub(super) fn hello(&mut self, link: usize, in_doubt: Vec<Found>) {
        let reaches =
            self.serving && self.links[link].coordinator_life == self.life && !self.is_cut(link);
        if !reaches {
            self.links[link].coordinator = Side::Closed;
            return self.events.at(self.now + 1, Event::AgentNotices(link));
        }
        self.links[link].coordinator = Side::Open;
        let site = &self.sites[self.links[link].site];
        let opened = Opened {
            session: SessionId(link as u64),
            participant: site.name.clone(),
            agent: format!("{}-{}", site.name, self.links[link].agent),
            resource: site.name.to_string(),
            capacity: site.shape.capacity,
            one_phase: site.shape.one_phase,
            settles_steps: site.shape.settles,
            seen: self.seen.into_iter().collect(),
            in_doubt,
        };
        self.fact(&Fact::Opened {
            session: opened.session,
            capacity: opened.capacity,
        });
        self.feed(Input::SessionOpened(opened));
    }

    /// What comes from an earlier incarnation's session finds nobody; what comes on a session that was closed is for the engine to absorb.
    pub(super) fn arrives_up(&mut self, link: usize, message: Upward) {
        if self.links[link].coordinator_life != self.life || self.is_cut(link) {
            return;
        }
        let session = SessionId(link as u64);
        if self.links[link].coordinator == Side::Open {
            self.fact(&Fact::Heard {
                session,
                message: &message,
            });
        } else if key_heard(&message).is_some() {
            self.figures.stale_messages += 1;
        }
        self.feed(Input::Message { session, message });
    }

    pub(super) fn arrives_down(&mut self, link: usize, message: Downward) {
        let Link { site, agent, .. } = self.links[link];
        let process = &self.sites[site].agents[agent];
        let gone = process.life != self.links[link].agent_life || !process.up;
        if gone || self.is_cut(link) || self.links[link].at_agent == Side::Closed {
            return;
        }
        self.receive(link, message);
    }

    /// The session is over, for both sides in their own time.
    pub(super) fn break_session(&mut self, link: usize, up_ms: u64, down_ms: u64) {
        self.cut(link);
        self.events
            .at(self.now + up_ms, Event::CoordinatorNotices(link));
        self.events
            .at(self.now + down_ms, Event::AgentNotices(link));
    }

    pub(super) fn coordinator_notices(&mut self, link: usize) {
        if self.links[link].coordinator != Side::Open {
            return;
        }
        self.links[link].coordinator = Side::Closed;
        self.cut(link);
        let session = SessionId(link as u64);
        self.fact(&Fact::Closed(session));
        self.feed(Input::SessionClosed(session));
    }

    pub(super) fn agent_notices(&mut self, link: usize) {
        if self.links[link].at_agent == Side::Closed {
            return;
        }
        self.links[link].at_agent = Side::Closed;
        self.cut(link);
        self.session_lost(link);
    }
}

fn coming(event: &Event) -> String {
    match event {
        Event::Up { message, .. } => upward(message),
        Event::Down { message, .. } => downward(message),
        other => format!("{other:?}"),
    }
}
