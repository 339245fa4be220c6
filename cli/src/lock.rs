//! `unanimity lock`: keys that sagas hold.

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
    /// Lists the locks that are held, by whom, and how many sagas wait for each.
    List,
}

impl Command {
    pub(crate) async fn run(self, connection: Connection, format: Format) -> Result<(), Failure> {
        let Self::List = self;
        let mut locks = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = connection.request(v1::ListLocksRequest {
                page_size: 1000,
                page_token,
            });
            let mut service = connection.admin.clone();
            let page = connection
                .answer(Effect::Reads, service.list_locks(request))
                .await?;
            locks.extend(page.locks.into_iter().map(Lock::from));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return print(format, &List { locks });
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct List {
    locks: Vec<Lock>,
}

#[derive(Debug, Serialize)]
struct Lock {
    key: String,
    transaction_id: String,
    token: u64,
    waiting: u32,
}

impl From<v1::Lock> for Lock {
    fn from(lock: v1::Lock) -> Self {
        Self {
            key: lock.key,
            transaction_id: lock.transaction_id,
            token: lock.token,
            waiting: lock.waiting,
        }
    }
}

impl Show for List {
    fn text(&self) -> String {
        let rows = self.locks.iter().map(|lock| {
            [
                lock.key.clone(),
                lock.transaction_id.clone(),
                lock.token.to_string(),
                lock.waiting.to_string(),
            ]
        });
        table(["KEY", "HELD BY", "TOKEN", "WAITING"], rows)
    }
}
