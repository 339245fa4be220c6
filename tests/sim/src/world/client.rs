//! Clients: they ask, wait, lose patience, ask again under the same request id, or look up what became of their transaction.

use unanimity_engine::{
    Answer, Begin, Input, ParticipantName, Refusal, RequestId, Submit, SubmitSaga, Ticket,
    TransactionId, TransactionState, Upward,
};

use super::{World, event::Event};
use crate::{
    fact::Fact,
    plan::{Ask, Ends, Request, Way},
};

/// Whose call it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// A client's, at this turn.
    Client(usize, u32),
    /// Somebody's who does not mind if there is no answer.
    Bystander,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asking,
    /// At this operation.
    Working(usize),
    Ending(Ends),
    LookingUp,
    Done,
}

/// A client with one request.
#[derive(Debug)]
pub(super) struct Client {
    request: Request,
    request_id: Option<RequestId>,
    fingerprint: u64,
    first_sent: Option<u64>,
    stage: Stage,
    id: Option<TransactionId>,
    /// What it does next makes whatever it waited for void.
    turn: u32,
    /// A reply did not come.
    unsure: bool,
}

impl Client {
    pub(super) fn new(number: usize, request: Request) -> Self {
        let text = format!("request-{number}");
        Client {
            request_id: RequestId::parse(&text).filter(|_| request.keyed),
            fingerprint: number as u64,
            request,
            first_sent: None,
            stage: Stage::Asking,
            id: None,
            turn: 0,
            unsure: false,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    pub(super) fn describe(&self) -> String {
        let name = self
            .request_id
            .as_ref()
            .map_or("no request id", |r| r.as_str());
        format!("{name}, {:?}", self.stage)
    }
}

impl World {
    /// Does what its stage asks for.
    pub(super) fn client_acts(&mut self, client: usize) {
        let found = &mut self.clients[client];
        found.turn += 1;
        let (turn, patience) = (found.turn, found.request.patience_ms);
        match found.stage {
            Stage::Done => return,
            Stage::Ending(Ends::Vanishes) => return found.stage = Stage::Done,
            Stage::Asking | Stage::Working(_) | Stage::Ending(_) | Stage::LookingUp => {}
        }
        let ticket = self.ticket(Purpose::Client(client, turn));
        let Some(call) = self.call_of(client, ticket) else {
            return;
        };
        self.send_call(ticket, call);
        self.events
            .at(self.now + patience, Event::Wakes { client, turn });
    }

    pub(super) fn ticket(&mut self, purpose: Purpose) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.calls.insert(ticket, purpose);
        ticket
    }

    pub(super) fn send_call(&mut self, ticket: Ticket, call: Input) {
        if std::mem::take(&mut self.armed.call_lost) {
            self.figures.landed("call_lost");
            self.trace
                .note(self.now, || format!("call {} is lost", ticket.0));
            return;
        }
        let at = self.now + self.latency();
        let life = self.life;
        let call = Box::new(call);
        self.events.at(at, Event::Calls { life, ticket, call });
    }

    fn call_of(&mut self, client: usize, ticket: Ticket) -> Option<Input> {
        let found = &self.clients[client];
        let id = found.id;
        Some(match found.stage {
            Stage::Asking => self.ask(client, ticket),
            Stage::Working(at) => {
                let Ask::Interactive { operations, .. } = &found.request.ask else {
                    return None;
                };
                let (site, work) = &operations[at];
                Input::Execute {
                    ticket,
                    transaction: id?,
                    participant: self.sites[*site].name.clone(),
                    operation: work.encode(),
                }
            }
            Stage::Ending(Ends::Commits) => Input::Commit {
                ticket,
                transaction: id?,
                answer_decided: found.request.early,
            },
            Stage::Ending(_) => Input::Abort {
                ticket,
                transaction: id?,
                reason: crate::database::because(unanimity_engine::AbortCode::Client),
            },
            Stage::LookingUp => Input::Lookup {
                ticket,
                transaction: id?,
            },
            Stage::Done => return None,
        })
    }

    fn ask(&mut self, client: usize, ticket: Ticket) -> Input {
        let now = self.now;
        let unique = self.unique();
        let found = &mut self.clients[client];
        let first = *found.first_sent.get_or_insert(now);
        let age_ms = now - first;
        let (request, request_id) = (found.request.clone(), found.request_id.clone());
        let fingerprint = found.fingerprint;
        self.fact(&Fact::Asked {
            unique,
            request: request_id.as_ref(),
        });
        let name = |site: &usize| -> ParticipantName { self.sites[*site].name.clone() };
        let (timeout_ms, traceparent) = (request.timeout_ms, String::new());
        match request.ask {
            Ask::Submit(branches) => Input::Submit(Submit {
                ticket,
                unique,
                request_id,
                fingerprint,
                branches: branches
                    .iter()
                    .map(|(site, work)| (name(site), work.encode()))
                    .collect(),
                age_ms,
                timeout_ms,
                answer_decided: request.early,
                traceparent,
            }),
            Ask::Interactive { sites, .. } => Input::Begin(Begin {
                ticket,
                unique,
                request_id,
                participants: sites.iter().map(name).collect(),
                age_ms,
                timeout_ms,
                traceparent,
            }),
            Ask::Saga {
                steps,
                locks,
                lock_timeout_ms,
            } => Input::SubmitSaga(SubmitSaga {
                ticket,
                unique,
                request_id,
                fingerprint,
                steps,
                locks,
                lock_timeout_ms,
                age_ms,
                timeout_ms,
                answer_accepted: request.early,
                traceparent,
            }),
        }
    }

    pub(super) fn reply_arrives(&mut self, ticket: Ticket, answer: Result<Answer, Refusal>) {
        let Some(Purpose::Client(client, turn)) = self.calls.remove(&ticket) else {
            return;
        };
        // What comes after it lost patience is news to it all the same, if it is the end.
        let current = self.clients[client].turn == turn;
        match answer {
            Ok(Answer::Transaction(view)) => {
                let found = &mut self.clients[client];
                found.id = Some(view.id);
                let ended = matches!(
                    view.state,
                    TransactionState::Committed
                        | TransactionState::Aborted
                        | TransactionState::Heuristic
                        | TransactionState::Compensated
                );
                if ended && !found.is_done() {
                    self.figures.outcome(view.state, found.unsure);
                    found.stage = Stage::Done;
                } else if current {
                    self.goes_on(client, view.state);
                }
            }
            Ok(Answer::Executed(_)) if current => self.executed(client),
            Ok(Answer::Executed(_)) => {}
            Err(refusal) if current => self.refused(client, &refusal),
            Err(_) => {}
        }
    }

    /// It is open, or its end is not there yet.
    fn goes_on(&mut self, client: usize, state: TransactionState) {
        let found = &mut self.clients[client];
        let interactive = matches!(found.request.ask, Ask::Interactive { .. });
        let opened = state == TransactionState::Active && found.stage == Stage::Asking;
        if !(interactive && opened) {
            found.stage = Stage::LookingUp;
            return self.acts_in(client, 300);
        }
        if let Ask::Interactive {
            enlists: Some(site),
            ..
        } = found.request.ask
        {
            self.enlist(site, self.clients[client].id);
        }
        self.next_operation(client, 0);
    }

    /// A service at that site joins the transaction.
    fn enlist(&mut self, site: usize, transaction: Option<TransactionId>) {
        let link = self.sites[site].agents.iter().find_map(|agent| agent.link);
        if let Some(link) = link {
            self.travel(link, Way::Up, |link| Event::Up {
                link,
                message: Upward::Enlist {
                    correlation: link as u64,
                    transaction,
                },
            });
        }
    }

    fn next_operation(&mut self, client: usize, at: usize) {
        let found = &mut self.clients[client];
        let Ask::Interactive {
            operations, ends, ..
        } = &found.request.ask
        else {
            return;
        };
        found.stage = if at < operations.len() {
            Stage::Working(at)
        } else {
            Stage::Ending(*ends)
        };
        self.acts_in(client, 100);
    }

    fn executed(&mut self, client: usize) {
        if let Stage::Working(at) = self.clients[client].stage {
            self.next_operation(client, at + 1);
        }
    }

    fn refused(&mut self, client: usize, refusal: &Refusal) {
        self.figures.refused(refusal);
        let found = &mut self.clients[client];
        match refusal {
            Refusal::TransactionAborted { .. }
            | Refusal::TransactionDecided(_)
            | Refusal::TransactionNotOpen(_) => found.stage = Stage::LookingUp,
            Refusal::ParticipantBusy(_) => found.stage = Stage::Ending(Ends::Aborts),
            Refusal::TransactionUnknown(_)
            | Refusal::TransactionForgotten(_)
            | Refusal::RequestIdForgotten(_) => {
                self.figures.never_known += 1;
                return found.stage = Stage::Done;
            }
            Refusal::Interrupted(id) => {
                found.id = Some(*id);
                found.stage = Stage::LookingUp;
            }
            Refusal::ParticipantUnavailable(_)
            | Refusal::ParticipantUnknown(_)
            | Refusal::TooManyTransactions(_)
            | Refusal::Draining
            | Refusal::OutcomePending { .. } => {
                if matches!(found.stage, Stage::Working(_)) {
                    found.stage = Stage::Ending(Ends::Aborts);
                }
            }
            Refusal::Invalid { .. }
            | Refusal::TooManyBranches { .. }
            | Refusal::PayloadTooLarge { .. }
            | Refusal::RequestIdReused(_)
            | Refusal::StepNotTried { .. }
            | Refusal::BranchNotInDoubt(_)
            | Refusal::ResourceMismatch { .. } => found.stage = Stage::Done,
        }
        self.acts_in(client, 700);
    }

    fn acts_in(&mut self, client: usize, most: u64) {
        let found = &mut self.clients[client];
        found.turn += 1;
        let turn = found.turn;
        let at = self.now + self.client_random.between(most / 4, most);
        self.events.at(at, Event::Wakes { client, turn });
    }

    pub(super) fn call_is_cut_off(&mut self, ticket: Ticket) {
        if let Some(Purpose::Client(client, turn)) = self.calls.remove(&ticket)
            && self.clients[client].turn == turn
        {
            self.unanswered(client);
        }
    }

    pub(super) fn client_wakes(&mut self, client: usize, turn: u32) {
        if self.clients[client].turn != turn {
            return;
        }
        let waits = self
            .calls
            .values()
            .any(|purpose| matches!(purpose, Purpose::Client(c, t) if (*c, *t) == (client, turn)));
        if waits {
            self.unanswered(client);
        } else {
            self.client_acts(client);
        }
    }

    /// No reply came: whether its call did anything is not known.
    fn unanswered(&mut self, client: usize) {
        let found = &mut self.clients[client];
        found.unsure = true;
        match found.stage {
            Stage::Asking if found.request_id.is_some() => {}
            Stage::Asking => {
                // Nothing tells what became of it.
                self.figures.never_known += 1;
                found.stage = Stage::Done;
            }
            Stage::Working(_) => found.stage = Stage::Ending(Ends::Aborts),
            Stage::Ending(Ends::Commits) => {}
            Stage::Ending(_) => found.stage = Stage::LookingUp,
            Stage::LookingUp | Stage::Done => {}
        }
        if !found.is_done() {
            self.acts_in(client, 400);
        }
    }
}
