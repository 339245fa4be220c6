//! An engine by hand: inputs in, effects out.

#![allow(dead_code, reason = "each test binary uses the part that it needs")]

use unanimity_engine::{
    AbortCode, AbortReason, Answer, BranchKey, Completion, Downward, Effect, Engine, Input, LogId,
    Moment, Opened, ParticipantName, Record, Refusal, Replay, RequestId, Seq, SessionId, Settings,
    Start, Submit, Ticket, TransactionId, TransactionState, Upward, Vote,
};

pub(crate) const LOG: LogId = LogId(1);

pub(crate) struct Bench {
    pub(crate) engine: Engine,
    pub(crate) now: Moment,
    pub(crate) log: Vec<Record>,
    pub(crate) synced: usize,
    pub(crate) forced: usize,
    pub(crate) sent: Vec<(SessionId, Downward)>,
    pub(crate) answers: Vec<(Ticket, Result<Answer, Refusal>)>,
    pub(crate) closed: Vec<Refusal>,
    pub(crate) trimmed: Option<Seq>,
    pub(crate) halted: bool,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Bench::with(Vec::new(), Settings::default())
    }

    pub(crate) fn with(log: Vec<Record>, settings: Settings) -> Self {
        let mut replay = Replay::new();
        log.iter().cloned().for_each(|record| replay.apply(record));
        let next = Seq(log.len() as u64 + 1);
        let engine = replay.start(LOG, settings, start(next, Moment(0)));
        let synced = log.len();
        let mut bench = Bench {
            engine,
            now: Moment(0),
            log,
            synced,
            forced: 0,
            sent: Vec::new(),
            answers: Vec::new(),
            closed: Vec::new(),
            trimmed: None,
            halted: false,
        };
        bench.drain();
        bench.sync();
        bench
    }

    /// Dies and comes back with what was synced.
    pub(crate) fn restart(self) -> Self {
        let log = self.log[..self.synced].to_vec();
        Bench::with(log, Settings::default())
    }

    pub(crate) fn give(&mut self, input: Input) {
        self.engine.handle(self.now, input);
        self.drain();
    }

    pub(crate) fn drain(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            match effect {
                Effect::Append {
                    seq,
                    record,
                    forced,
                } => {
                    self.log.push(record);
                    assert_eq!(seq.0, self.log.len() as u64);
                    self.forced += usize::from(forced);
                }
                Effect::Send { session, message } => self.sent.push((session, message)),
                Effect::Answer { ticket, answer } => self.answers.push((ticket, answer)),
                Effect::Close { refusal, .. } => self.closed.push(refusal),
                Effect::Trim(seq) => self.trimmed = Some(seq),
                Effect::Halt { .. } => self.halted = true,
                Effect::Report(_) => {}
            }
        }
    }

    pub(crate) fn sync(&mut self) {
        self.synced = self.log.len();
        self.give(Input::Durable(Seq(self.synced as u64)));
    }

    pub(crate) fn open(&mut self, session: u64, participant: &str, capacity: u32, one_phase: bool) {
        self.give(Input::SessionOpened(opened(
            session,
            participant,
            capacity,
            one_phase,
        )));
        self.sync();
    }

    pub(crate) fn submit(&mut self, ticket: u64, participants: &[&str]) -> TransactionId {
        self.submit_as(ticket, participants, None)
    }

    pub(crate) fn submit_as(
        &mut self,
        ticket: u64,
        participants: &[&str],
        request: Option<&str>,
    ) -> TransactionId {
        let unique = u128::from(ticket) << 80;
        self.give(Input::Submit(Submit {
            ticket: Ticket(ticket),
            unique,
            request_id: request.and_then(RequestId::parse),
            fingerprint: participants.len() as u64,
            branches: participants
                .iter()
                .map(|p| (name(p), b"w"[..].into()))
                .collect(),
            age_ms: 0,
            timeout_ms: 1_000,
            answer_decided: false,
            traceparent: String::new(),
        }));
        TransactionId {
            log: LOG,
            epoch: self.engine.incarnation().epoch,
            unique,
        }
    }

    pub(crate) fn vote(
        &mut self,
        session: u64,
        transaction: TransactionId,
        branch: u32,
        vote: Vote,
    ) {
        let key = BranchKey {
            transaction,
            branch,
        };
        self.give(Input::Message {
            session: SessionId(session),
            message: Upward::Vote { key, vote },
        });
    }

    pub(crate) fn complete(
        &mut self,
        session: u64,
        transaction: TransactionId,
        branch: u32,
        completion: Completion,
    ) {
        let key = BranchKey {
            transaction,
            branch,
        };
        self.give(Input::Message {
            session: SessionId(session),
            message: Upward::Completion { key, completion },
        });
    }

    pub(crate) fn sent_to(&mut self, session: u64) -> Vec<Downward> {
        let (mine, rest) = std::mem::take(&mut self.sent)
            .into_iter()
            .partition(|(s, _)| s.0 == session);
        self.sent = rest;
        let mine: Vec<(SessionId, Downward)> = mine;
        mine.into_iter()
            .map(|(_, m)| m)
            .filter(|m| !matches!(m, Downward::ListInDoubt | Downward::Welcome(_)))
            .collect()
    }

    pub(crate) fn told(&self, ticket: u64) -> Option<TransactionState> {
        self.answers.iter().find_map(|(t, answer)| match answer {
            Ok(Answer::Transaction(view)) if t.0 == ticket => Some(view.state),
            _ => None,
        })
    }

    pub(crate) fn refused(&self, ticket: u64) -> Option<&Refusal> {
        self.answers
            .iter()
            .find(|(t, _)| t.0 == ticket)
            .and_then(|(_, answer)| answer.as_ref().err())
    }
}

/// An incarnation's start; the wall clock says the same as the other.
pub(crate) fn start(next_seq: Seq, now: Moment) -> Start {
    Start {
        next_seq,
        now,
        unix_ms: now.0,
        seed: 7,
    }
}

pub(crate) fn name(text: &str) -> ParticipantName {
    ParticipantName::parse(text).unwrap()
}

pub(crate) fn opened(session: u64, participant: &str, capacity: u32, one_phase: bool) -> Opened {
    Opened {
        session: SessionId(session),
        participant: name(participant),
        agent: "test".into(),
        resource: participant.into(),
        capacity,
        one_phase,
        settles_steps: true,
        seen: Vec::new(),
        in_doubt: Vec::new(),
    }
}

pub(crate) fn yes() -> Vote {
    Vote::Yes { proof: "42".into() }
}

pub(crate) fn no(code: AbortCode) -> AbortReason {
    AbortReason {
        code,
        participant: String::new(),
        message: "because".into(),
    }
}

pub(crate) fn two() -> Bench {
    let mut bench = Bench::new();
    bench.open(1, "a", 8, false);
    bench.open(2, "b", 8, false);
    bench.forced = 0;
    bench
}
