//! `unanimity tx`: transactions, and sagas among them.

mod saga;

use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use unanimity_proto::v1::{self, TransactionState};

use self::saga::Saga;
use crate::{
    confirm::{confirm, reason},
    connection::Connection,
    exit::{Effect, Exit, Failure},
    output::{Format, Show, non_empty, pairs, print, table, word},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists transactions, newest first.
    List {
        /// Only in this state; may be given more than once.
        #[arg(long, value_enum)]
        state: Vec<State>,
        /// Only with a branch, or a step, at this participant.
        #[arg(long)]
        participant: Option<String>,
        /// At most this many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Shows a transaction and its branches, or a saga and its steps.
    Get {
        /// The transaction.
        id: String,
    },
    /// Aborts a transaction that is not decided yet, or turns a saga back that is not past its pivot.
    ///
    /// The answer comes as soon as that is certain. A saga may then still be at work to undo what it did.
    #[command(visible_alias = "cancel")]
    Abort {
        /// The transaction.
        id: String,
        /// Why; kept with the transaction.
        #[arg(long, default_value = "asked for by an operator")]
        reason: String,
    },
    /// Sends a decision, or a saga's steps that failed, again now, rather than at the end of the back-off.
    Retry {
        /// The transaction.
        id: String,
    },
    /// Marks a saga's step, or its compensation, done because you did it by hand. Nothing is sent for it any more.
    ///
    /// It must be one that is being tried: its action where the saga goes forward, its compensation where it goes back.
    ResolveStep {
        /// The saga.
        id: String,
        /// The step's name.
        step: String,
        /// Why, in 10 characters or more; kept in the log.
        #[arg(long, value_parser = reason)]
        reason: String,
        /// Don't ask.
        #[arg(long)]
        yes: bool,
    },
}

/// Where a transaction stands.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum State {
    Active,
    Waiting,
    Preparing,
    Committing,
    Aborting,
    Committed,
    Aborted,
    Heuristic,
    Running,
    Compensating,
    Compensated,
}

impl From<State> for TransactionState {
    fn from(state: State) -> Self {
        match state {
            State::Active => Self::Active,
            State::Waiting => Self::Waiting,
            State::Preparing => Self::Preparing,
            State::Committing => Self::Committing,
            State::Aborting => Self::Aborting,
            State::Committed => Self::Committed,
            State::Aborted => Self::Aborted,
            State::Heuristic => Self::Heuristic,
            State::Running => Self::Running,
            State::Compensating => Self::Compensating,
            State::Compensated => Self::Compensated,
        }
    }
}

impl Command {
    /// Asks the operator, where there is something to ask.
    pub(crate) fn confirm(&self) -> Result<(), Failure> {
        match self {
            Self::ResolveStep {
                id,
                step,
                yes: false,
                ..
            } => confirm(&format!(
                "Step {step} of {id}, or its compensation if that is being tried, counts as done for ever, and nothing is sent for it any more."
            )),
            _ => Ok(()),
        }
    }

    pub(crate) async fn run(
        self,
        mut connection: Connection,
        format: Format,
    ) -> Result<(), Failure> {
        match self {
            Self::List {
                state,
                participant,
                limit,
            } => {
                let states = state
                    .into_iter()
                    .map(|state| TransactionState::from(state).into())
                    .collect();
                print(
                    format,
                    &list(
                        &mut connection,
                        states,
                        participant.unwrap_or_default(),
                        limit,
                    )
                    .await?,
                )
            }
            Self::Get { id } => {
                let request = connection.request(v1::GetTransactionRequest { transaction_id: id });
                let mut service = connection.transactions.clone();
                let response = connection
                    .answer(Effect::Reads, service.get_transaction(request))
                    .await?;
                print(format, &Transaction::parse(response.transaction)?)
            }
            Self::Abort { id, reason } => {
                let request = connection.request(v1::AbortTransactionRequest {
                    transaction_id: id,
                    reason,
                });
                let mut service = connection.transactions.clone();
                let response = connection
                    .answer(Effect::Changes, service.abort_transaction(request))
                    .await?;
                print(format, &Transaction::parse(response.transaction)?)
            }
            Self::Retry { id } => {
                let request =
                    connection.request(v1::RetryTransactionRequest { transaction_id: id });
                let mut service = connection.admin.clone();
                let response = connection
                    .answer(Effect::Changes, service.retry_transaction(request))
                    .await?;
                print(format, &Transaction::parse(response.transaction)?)
            }
            Self::ResolveStep {
                id, step, reason, ..
            } => {
                let request = connection.request(v1::ResolveStepRequest {
                    transaction_id: id,
                    step,
                    reason,
                });
                let mut service = connection.admin.clone();
                let response = connection
                    .answer(Effect::Changes, service.resolve_step(request))
                    .await?;
                print(format, &Transaction::parse(response.transaction)?)
            }
        }
    }
}

async fn list(
    connection: &mut Connection,
    states: Vec<i32>,
    participant: String,
    limit: u32,
) -> Result<List, Failure> {
    let limit = limit as usize;
    let mut transactions = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = connection.request(v1::ListTransactionsRequest {
            page_size: (limit - transactions.len()).min(1000) as i32,
            page_token,
            states: states.clone(),
            participant: participant.clone(),
        });
        let mut service = connection.transactions.clone();
        let page = connection
            .answer(Effect::Reads, service.list_transactions(request))
            .await?;
        for transaction in page.transactions {
            transactions.push(Transaction::parse(Some(transaction))?);
        }
        page_token = page.next_page_token;
        let more = !page_token.is_empty();
        if !more || transactions.len() >= limit {
            if more {
                eprintln!("there are more; raise --limit to see them");
            }
            return Ok(List { transactions, more });
        }
    }
}

#[derive(Debug, Serialize)]
struct List {
    transactions: Vec<Transaction>,
    more: bool,
}

/// The stable shape of a transaction.
#[derive(Debug, Serialize)]
pub(crate) struct Transaction {
    transaction_id: String,
    request_id: Option<String>,
    state: String,
    /// RFC 3339, in UTC, to the millisecond.
    start_time: Option<String>,
    abort_reason: Option<AbortReason>,
    branches: Vec<Branch>,
    /// Null where it is none.
    saga: Option<Saga>,
}

#[derive(Debug, Serialize)]
struct AbortReason {
    code: String,
    participant: Option<String>,
    message: String,
}

#[derive(Debug, Serialize)]
struct Branch {
    number: u32,
    participant: String,
    state: String,
    delivery_attempts: u32,
    last_error: Option<String>,
    resolution_reason: Option<String>,
}

impl Transaction {
    pub(crate) fn parse(transaction: Option<v1::Transaction>) -> Result<Self, Failure> {
        let transaction = transaction.ok_or_else(|| {
            Failure::new(
                Exit::Internal,
                "the coordinator's answer holds no transaction",
            )
        })?;
        let state = enum_word::<TransactionState>(
            transaction.state,
            TransactionState::as_str_name,
            "TRANSACTION_STATE_",
        );
        Ok(Self {
            transaction_id: transaction.transaction_id,
            request_id: non_empty(transaction.request_id),
            state,
            start_time: time(transaction.start_time),
            abort_reason: transaction.abort_reason.map(|reason| AbortReason {
                code: enum_word::<v1::AbortCode>(
                    reason.code,
                    v1::AbortCode::as_str_name,
                    "ABORT_CODE_",
                ),
                participant: non_empty(reason.participant),
                message: reason.message,
            }),
            branches: transaction.branches.into_iter().map(Branch::from).collect(),
            saga: transaction.saga.map(Saga::from),
        })
    }

    fn participants(&self) -> String {
        let steps = self.saga.iter().flat_map(|saga| &saga.steps);
        let mut names: Vec<&str> = Vec::new();
        for name in self
            .branches
            .iter()
            .map(|branch| &branch.participant)
            .chain(steps.flat_map(|step| &step.participants))
        {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names.join(",")
    }
}

/// RFC 3339, in UTC, to the millisecond.
fn time(time: Option<prost_types::Timestamp>) -> Option<String> {
    time.and_then(|time| jiff::Timestamp::new(time.seconds, time.nanos).ok())
        .map(|time| format!("{time:.3}"))
}

impl From<v1::Branch> for Branch {
    fn from(branch: v1::Branch) -> Self {
        Self {
            number: branch.number,
            participant: branch.participant,
            state: enum_word::<v1::BranchState>(
                branch.state,
                v1::BranchState::as_str_name,
                "BRANCH_STATE_",
            ),
            delivery_attempts: branch.delivery_attempts,
            last_error: non_empty(branch.last_error),
            resolution_reason: non_empty(branch.resolution_reason),
        }
    }
}

/// A value of a later release shows as its number: a command that only shows must not hide the rest for it.
pub(crate) fn enum_word<E: TryFrom<i32>>(
    value: i32,
    name: fn(&E) -> &'static str,
    prefix: &str,
) -> String {
    match E::try_from(value) {
        Ok(known) => word(name(&known), prefix),
        Err(_) => format!("unknown_{value}"),
    }
}

impl Show for List {
    fn text(&self) -> String {
        let rows = self.transactions.iter().map(|transaction| {
            let saga = transaction.saga.as_ref();
            [
                transaction.transaction_id.clone(),
                transaction.state.clone(),
                transaction.start_time.clone().unwrap_or_default(),
                transaction.participants(),
                saga.map(Saga::stuck).unwrap_or_default(),
            ]
        });
        table(
            [
                "TRANSACTION",
                "STATE",
                "STARTED",
                "PARTICIPANTS",
                "STUCK STEPS",
            ],
            rows,
        )
    }
}

impl Show for Transaction {
    fn text(&self) -> String {
        let mut head = vec![
            ("transaction", self.transaction_id.clone()),
            ("state", self.state.clone()),
            ("request id", self.request_id.clone().unwrap_or_default()),
            ("started", self.start_time.clone().unwrap_or_default()),
        ];
        if let Some(AbortReason {
            code,
            participant,
            message,
        }) = &self.abort_reason
        {
            let by = participant
                .as_ref()
                .map(|name| format!(" by {name}"))
                .unwrap_or_default();
            let what = if self.saga.is_some() {
                "turned back"
            } else {
                "aborted"
            };
            head.push((what, format!("{code}{by}: {message}")));
        }
        if let Some(saga) = &self.saga {
            head.extend(saga.head());
            return format!("{}\n\n{}", pairs(head), saga.table());
        }
        let rows = self.branches.iter().map(|branch| {
            [
                branch.number.to_string(),
                branch.participant.clone(),
                branch.state.clone(),
                branch.delivery_attempts.to_string(),
                branch.last_error.clone().unwrap_or_default(),
                branch.resolution_reason.clone().unwrap_or_default(),
            ]
        });
        let branches = table(
            [
                "BRANCH",
                "PARTICIPANT",
                "STATE",
                "ATTEMPTS",
                "LAST ERROR",
                "RESOLVED BECAUSE",
            ],
            rows,
        );
        format!("{}\n\n{branches}", pairs(head))
    }
}
