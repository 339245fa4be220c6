//! A life as it can be read: one line for each thing that happened, with short names for transactions in the order in which they came up.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use unanimity_engine::{Answer, Downward, Input, Upward};

use crate::fact::{Changed, Fact};

/// The lines so far.
#[derive(Debug)]
pub(crate) struct Trace {
    wanted: bool,
    pub(crate) lines: Vec<String>,
    names: BTreeMap<String, usize>,
}

impl Trace {
    pub(crate) fn new(wanted: bool) -> Self {
        Trace {
            wanted,
            lines: Vec::new(),
            names: BTreeMap::new(),
        }
    }

    /// What the simulator did.
    pub(crate) fn note(&mut self, now: u64, line: impl FnOnce() -> String) {
        if self.wanted {
            let line = line();
            self.put(now, &line);
        }
    }

    pub(crate) fn input(&mut self, now: u64, input: &Input) {
        if self.wanted {
            let line = describe_input(input);
            self.put(now, &line);
        }
    }

    pub(crate) fn fact(&mut self, now: u64, fact: &Fact<'_>) {
        if self.wanted
            && let Some(line) = describe(fact)
        {
            self.put(now, &line);
        }
    }

    fn put(&mut self, now: u64, line: &str) {
        let line = self.shorten(line);
        self.lines.push(format!("{now:>6} {line}"));
    }

    /// Ids are long, and all alike.
    fn shorten(&mut self, line: &str) -> String {
        let mut parts = line.split("u1.");
        let mut short = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let plain = |c: char| c.is_ascii_hexdigit() || c == '.';
            let end = part.find(|c| !plain(c)).unwrap_or(part.len());
            let mut fields = part[..end].splitn(4, '.');
            let id: Vec<&str> = fields.by_ref().take(3).collect();
            let next = self.names.len() + 1;
            let name = *self.names.entry(id.join(".")).or_insert(next);
            short.push_str(&format!("t{name}"));
            if let Some(branch) = fields.next() {
                short.push_str(&format!("/{branch}"));
            }
            short.push_str(&part[end..]);
        }
        short
    }

    pub(crate) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.lines.hash(&mut hasher);
        hasher.finish()
    }
}

fn describe_input(input: &Input) -> String {
    match input {
        Input::Submit(s) => {
            let names: Vec<_> = s.branches.iter().map(|(name, _)| name.as_str()).collect();
            let request = s.request_id.as_ref().map_or("-", |r| r.as_str());
            format!(
                "<  call {} submit {request} at {}",
                s.ticket.0,
                names.join(" ")
            )
        }
        Input::SubmitSaga(s) => {
            let steps: Vec<_> = s.steps.iter().map(|step| step.name.as_str()).collect();
            let locks: Vec<_> = s.locks.iter().map(|key| key.as_str()).collect();
            let request = s.request_id.as_ref().map_or("-", |r| r.as_str());
            let (ticket, steps, locks) = (s.ticket.0, steps.join(" "), locks.join(" "));
            format!("<  call {ticket} saga {request} of {steps} under {locks}")
        }
        Input::Begin(b) => {
            let names: Vec<_> = b.participants.iter().map(|name| name.as_str()).collect();
            format!("<  call {} begin at {}", b.ticket.0, names.join(" "))
        }
        Input::Execute {
            ticket,
            transaction,
            participant,
            ..
        } => format!(
            "<  call {} execute {transaction} at {participant}",
            ticket.0
        ),
        Input::Commit {
            ticket,
            transaction,
            ..
        } => format!("<  call {} commit {transaction}", ticket.0),
        Input::Abort {
            ticket,
            transaction,
            ..
        } => format!("<  call {} abort {transaction}", ticket.0),
        Input::Lookup {
            ticket,
            transaction,
        } => format!("<  call {} look up {transaction}", ticket.0),
        Input::SessionOpened(o) => {
            let found: Vec<_> = o.in_doubt.iter().map(|f| f.identifier.as_str()).collect();
            format!(
                "<  s{} {} opens, in doubt: [{}]",
                o.session.0,
                o.agent,
                found.join(" ")
            )
        }
        Input::SessionClosed(session) => format!("<  s{} is over", session.0),
        Input::Message { session, message } => format!("<  s{} {}", session.0, upward(message)),
        Input::Durable(seq) => format!("<  durable up to {}", seq.0),
        Input::Tick => "<  tick".into(),
        Input::Drain => "<  drain".into(),
        Input::Checkpoint => "<  checkpoint".into(),
        Input::Retry {
            ticket,
            transaction,
        } => format!("<  call {} retry {transaction}", ticket.0),
        Input::ResolveStep {
            ticket,
            transaction,
            step,
            ..
        } => format!("<  call {} resolve step {step} of {transaction}", ticket.0),
        Input::Resolve {
            ticket,
            branch,
            resolution,
            ..
        } => format!("<  call {} resolve {branch} {resolution:?}", ticket.0),
    }
}

fn describe(fact: &Fact<'_>) -> Option<String> {
    Some(match fact {
        Fact::Appended { seq, record } => format!(" > log {}: {record}", seq.0),
        Fact::Died { survived } => format!("---- coordinator dies, log kept to {}", survived.0),
        Fact::Started { epoch, .. } => format!("---- coordinator starts, epoch {epoch}"),
        Fact::Sent {
            session, message, ..
        } => format!(" > s{} {}", session.0, downward(message)),
        Fact::Answered { ticket, answer } => {
            let text = match answer {
                Ok(Answer::Transaction(view)) => format!("{} {:?}", view.id, view.state),
                Ok(Answer::Executed(_)) => "rows".into(),
                Err(refusal) => format!("refused: {refusal}"),
            };
            format!(" > call {}: {text}", ticket.0)
        }
        Fact::Reported(event) => format!(" > {}", event_text(event)),
        Fact::Refused(refusal) => format!(" > session refused: {refusal}"),
        Fact::Garbled { record } => format!(" > garbled: {record}"),
        Fact::Changed(changed) => change(changed),
        Fact::Healed => "==== faults end".into(),
        // The inputs that these follow from are told already.
        Fact::Asked { .. }
        | Fact::Called(_)
        | Fact::Durable(_)
        | Fact::Opened { .. }
        | Fact::Closed(_)
        | Fact::Heard { .. }
        | Fact::Held { .. } => return None,
    })
}

fn change(changed: &Changed<'_>) -> String {
    let Changed {
        site,
        key,
        what,
        by,
        by_hand,
        token,
        ..
    } = changed;
    let hand = if *by_hand { " by hand" } else { "" };
    let token = if *token > 0 {
        format!(" token {token}")
    } else {
        String::new()
    };
    format!(" * site {site}: {key} {what:?}{hand} {by:+}{token}")
}

fn event_text(event: &unanimity_engine::Event) -> String {
    use unanimity_engine::Event;
    match event {
        Event::Changed(id, state) => format!("{id} is {state:?}"),
        Event::Heuristic {
            key,
            state,
            message,
            ..
        } => format!("HEURISTIC {key} {state:?}: {message}"),
        Event::Stuck {
            transaction, step, ..
        } => format!("{transaction} is stuck at {step}"),
        Event::Untouchable {
            identifier, why, ..
        } => format!("untouchable {identifier}: {why:?}"),
        Event::Retrying { key, message, .. } => format!("{key} again later: {message}"),
        Event::PeerMistake { session, mistake } => format!("s{} was wrong: {mistake}", session.0),
    }
}

/// A message that has not arrived yet.
pub(crate) fn downward(message: &Downward) -> String {
    match message {
        Downward::Welcome(_) => "welcome".into(),
        Downward::Prepare {
            key,
            continued,
            one_phase,
            ..
        } => {
            let how = match (one_phase, continued) {
                (true, true) => "commit what is open, in one phase",
                (true, false) => "run and commit in one phase",
                (false, true) => "prepare what is open",
                (false, false) => "run and prepare",
            };
            format!("{how} {key}")
        }
        Downward::Commit { key, .. } => format!("commit {key}"),
        Downward::Abort { key, .. } => format!("abort {key}"),
        Downward::Execute { key, sequence, .. } => format!("execute {key} no {sequence}"),
        Downward::Enlisted { result, .. } => match result {
            Ok(key) => format!("enlisted {key}"),
            Err(problem) => format!("not enlisted: {problem}"),
        },
        Downward::RunStep {
            key,
            step,
            compensates,
            attempt,
            token,
            ..
        } => {
            let verb = if compensates.is_some() { "undo" } else { "do" };
            format!("{verb} {step} {key} attempt {attempt} token {token}")
        }
        Downward::SettleStep { key, attempt, .. } => format!("settle {key} attempt {attempt}"),
        Downward::ListInDoubt => "list in doubt".into(),
        Downward::Prove { key } => format!("prove {key}"),
    }
}

/// A message of a participant.
pub(crate) fn upward(message: &Upward) -> String {
    match message {
        Upward::Vote { key, vote } => match vote {
            unanimity_engine::Vote::Yes { .. } => format!("vote {key} yes"),
            unanimity_engine::Vote::ReadOnly => format!("vote {key} read-only"),
            unanimity_engine::Vote::Committed => format!("vote {key} committed"),
            unanimity_engine::Vote::No(reason) => format!("vote {key} no: {:?}", reason.code),
            unanimity_engine::Vote::Duplicate(first) => format!("vote {key} duplicate of {first}"),
        },
        Upward::Completion { key, completion } => format!("completion {key} {completion:?}"),
        Upward::Executed {
            key,
            sequence,
            result,
        } => {
            let result = if result.is_ok() { "rows" } else { "refused" };
            format!("executed {key} no {sequence}: {result}")
        }
        Upward::Enlist { transaction, .. } => {
            let id = transaction.map(|id| id.to_string()).unwrap_or_default();
            format!("enlist in {id}")
        }
        Upward::InDoubt(found) => {
            let found: Vec<_> = found.iter().map(|f| f.identifier.as_str()).collect();
            format!("in doubt: [{}]", found.join(" "))
        }
        Upward::StepResult {
            key,
            attempt,
            outcome,
        } => {
            let text = match outcome {
                unanimity_engine::StepOutcome::Done(_) => "done".into(),
                unanimity_engine::StepOutcome::Refused(r) => format!("refused: {:?}", r.code),
                unanimity_engine::StepOutcome::Failed(r) => format!("failed: {:?}", r.code),
                unanimity_engine::StepOutcome::Unknown(_) => "unknown".into(),
                unanimity_engine::StepOutcome::Working(_) => "working".into(),
                unanimity_engine::StepOutcome::Never => "never".into(),
            };
            format!("step {key} attempt {attempt} {text}")
        }
        Upward::Proof { key, completion } => format!("proof {key} {completion:?}"),
    }
}
