//! `unanimity in-doubt`: branches that are prepared and not settled.

use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;
use unanimity_proto::v1;

use crate::{
    confirm::{confirm, reason},
    connection::Connection,
    exit::{Effect, Failure},
    output::{Format, Show, non_empty, print, table},
    tx::{Transaction, enum_word},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists them: ours on their way, and foreign ones, which nobody here touches.
    List,
    /// Records what you did to a branch by hand, in its database.
    ///
    /// The decision stays as it is: where the branch differs from it, the transaction ends as heuristic.
    Resolve(Resolve),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("made").required(true)))]
pub(crate) struct Resolve {
    /// The branch, as `in-doubt list` shows it: <TRANSACTION>.<NUMBER>. Its transaction must be decided.
    #[arg(value_parser = branch)]
    branch: (String, u32),
    /// The branch is committed.
    #[arg(long, group = "made")]
    committed: bool,
    /// The branch is rolled back.
    #[arg(long, group = "made")]
    aborted: bool,
    /// Why, in 10 characters or more; kept in the log.
    #[arg(long, value_parser = reason)]
    reason: String,
    /// Don't ask.
    #[arg(long)]
    yes: bool,
}

fn branch(text: &str) -> Result<(String, u32), String> {
    let parts = text.rsplit_once('.').filter(|(id, _)| id.contains('.'));
    parts
        .and_then(|(id, number)| Some((id.to_owned(), number.parse().ok().filter(|n| *n > 0)?)))
        .ok_or_else(|| "it has the form <TRANSACTION>.<NUMBER>, the number from 1".to_owned())
}

impl Command {
    /// Asks the operator, where there is something to ask.
    pub(crate) fn confirm(&self) -> Result<(), Failure> {
        let Self::Resolve(Resolve {
            branch: (id, number),
            committed,
            yes: false,
            ..
        }) = self
        else {
            return Ok(());
        };
        let made = if *committed {
            "committed"
        } else {
            "rolled back"
        };
        confirm(&format!(
            "Branch {number} of {id} counts as {made} for ever, and nothing is sent to it any more."
        ))
    }

    pub(crate) async fn run(self, connection: Connection, format: Format) -> Result<(), Failure> {
        match self {
            Self::List => print(format, &list(&connection).await?),
            Self::Resolve(resolve) => {
                let resolution = if resolve.committed {
                    v1::Resolution::Committed
                } else {
                    v1::Resolution::Aborted
                };
                let (transaction_id, branch) = resolve.branch;
                let request = connection.request(v1::ResolveBranchRequest {
                    transaction_id,
                    branch,
                    resolution: resolution.into(),
                    reason: resolve.reason,
                });
                let mut service = connection.admin.clone();
                let response = connection
                    .answer(Effect::Changes, service.resolve_branch(request))
                    .await?;
                print(format, &Transaction::parse(response.transaction)?)
            }
        }
    }
}

async fn list(connection: &Connection) -> Result<List, Failure> {
    let mut branches = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = connection.request(v1::ListInDoubtBranchesRequest {
            page_size: 1000,
            page_token,
        });
        let mut service = connection.admin.clone();
        let page = connection
            .answer(Effect::Reads, service.list_in_doubt_branches(request))
            .await?;
        branches.extend(page.branches.into_iter().map(Branch::from));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(List { branches });
        }
    }
}

#[derive(Debug, Serialize)]
struct List {
    branches: Vec<Branch>,
}

#[derive(Debug, Serialize)]
struct Branch {
    identifier: String,
    participant: String,
    kind: String,
    delivery_attempts: u32,
    last_error: Option<String>,
}

impl From<v1::InDoubt> for Branch {
    fn from(branch: v1::InDoubt) -> Self {
        Self {
            identifier: branch.identifier,
            participant: branch.participant,
            kind: enum_word::<v1::InDoubtKind>(
                branch.kind,
                v1::InDoubtKind::as_str_name,
                "IN_DOUBT_KIND_",
            ),
            delivery_attempts: branch.delivery_attempts,
            last_error: non_empty(branch.last_error),
        }
    }
}

impl Show for List {
    fn text(&self) -> String {
        let rows = self.branches.iter().map(|branch| {
            [
                branch.identifier.clone(),
                branch.participant.clone(),
                branch.kind.clone(),
                branch.delivery_attempts.to_string(),
                branch.last_error.clone().unwrap_or_default(),
            ]
        });
        table(
            ["BRANCH", "PARTICIPANT", "KIND", "ATTEMPTS", "LAST ERROR"],
            rows,
        )
    }
}
