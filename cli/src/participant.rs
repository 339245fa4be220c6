//! `unanimity participant`: participants and their sessions.

use clap::Subcommand;
use serde::Serialize;
use unanimity_proto::v1;

use crate::{
    connection::Connection,
    exit::{Effect, Failure},
    output::{Format, Show, print, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists all participants that ever registered. One without a session is down.
    List,
}

impl Command {
    pub(crate) async fn run(self, connection: Connection, format: Format) -> Result<(), Failure> {
        let Self::List = self;
        let mut participants = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = connection.request(v1::ListParticipantsRequest {
                page_size: 1000,
                page_token,
            });
            let mut service = connection.admin.clone();
            let page = connection
                .answer(Effect::Reads, service.list_participants(request))
                .await?;
            participants.extend(page.participants.into_iter().map(Participant::from));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return print(format, &List { participants });
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct List {
    participants: Vec<Participant>,
}

#[derive(Debug, Serialize)]
struct Participant {
    name: String,
    up: bool,
    used_slots: u32,
    capacity: u32,
    waiting_transactions: u32,
    sessions: Vec<Session>,
}

#[derive(Debug, Serialize)]
struct Session {
    agent: String,
    resource: String,
    used_slots: u32,
    capacity: u32,
}

impl From<v1::Participant> for Participant {
    fn from(participant: v1::Participant) -> Self {
        Self {
            up: !participant.sessions.is_empty(),
            name: participant.name,
            used_slots: participant.used_slots,
            capacity: participant.capacity,
            waiting_transactions: participant.waiting_transactions,
            sessions: participant
                .sessions
                .into_iter()
                .map(|session| Session {
                    agent: session.agent,
                    resource: session.resource,
                    used_slots: session.used_slots,
                    capacity: session.capacity,
                })
                .collect(),
        }
    }
}

impl Show for List {
    fn text(&self) -> String {
        let rows = self.participants.iter().map(|participant| {
            let agents: Vec<_> = participant
                .sessions
                .iter()
                .map(|session| session.agent.as_str())
                .collect();
            [
                participant.name.clone(),
                if participant.up { "up" } else { "down" }.to_owned(),
                format!("{}/{}", participant.used_slots, participant.capacity),
                participant.waiting_transactions.to_string(),
                agents.join(", "),
            ]
        });
        table(["PARTICIPANT", "STATE", "SLOTS", "WAITING", "AGENTS"], rows)
    }
}
