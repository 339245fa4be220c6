//! What applications call.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
use tonic::{Request, Response, Status};
use unanimity_engine::{
    AbortCode, AbortReason, Answer, Begin, Engine, Input, ParticipantName, Submit, SubmitSaga,
    TransactionId, TransactionState, TransactionView,
};
use unanimity_proto::v1::{self, transaction_service_server::TransactionService};
use uuid::Uuid;

use super::{Front, transaction};
use crate::{
    error::Refused,
    fingerprint, request,
    wire::{self, reference},
};

/// Transactions looked at for one page, so that a filter that fits few doesn't hold up the engine. The page may then be short.
const SCAN: usize = 5_000;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Transactions(pub(crate) Front);

#[tonic::async_trait]
impl TransactionService for Transactions {
    async fn submit_transaction(
        &self,
        request: Request<v1::SubmitTransactionRequest>,
    ) -> Result<Response<v1::SubmitTransactionResponse>, Status> {
        let handle = self.0.handle_for_new()?;
        let traceparent = request::traceparent(request.metadata());
        let given = request.into_inner();
        let check = |participant: &_, field: &str, operation: &_| {
            reference::refuse(field, operation)?;
            self.0.catalog.check(participant, field, operation)
        };
        let branches = request::branches("branches", given.branches, check)?;
        let request_id = request::request_id(&given.request_id)?;
        let age_ms = request::age_ms(given.age)?;
        let timeout_ms = self
            .0
            .timeouts
            .transaction
            .check("timeout", given.timeout)?;
        let answer_decided = request::answer_decided(given.answer_time)?;
        let fingerprint = fingerprint::of(
            branches
                .iter()
                .map(|(name, work)| (name.as_str(), &work[..])),
        );
        let submit = move |ticket| {
            Input::Submit(Submit {
                ticket,
                unique: Uuid::now_v7().as_u128(),
                request_id,
                fingerprint,
                branches: branches
                    .into_iter()
                    .map(|(name, operations)| (name, wire::work(operations)))
                    .collect(),
                age_ms,
                timeout_ms,
                answer_decided,
                traceparent,
            })
        };
        let answer = handle.call(submit).await?;
        Ok(Response::new(v1::SubmitTransactionResponse {
            transaction: Some(transaction(handle, answer)?),
        }))
    }

    async fn submit_saga(
        &self,
        request: Request<v1::SubmitSagaRequest>,
    ) -> Result<Response<v1::SubmitSagaResponse>, Status> {
        let handle = self.0.handle_for_new()?;
        let traceparent = request::traceparent(request.metadata());
        let given = request.into_inner();
        let timeouts = self.0.timeouts;
        let fingerprint = fingerprint::of_saga(&given.steps, &given.locks);
        let steps = request::saga::steps(given.steps, &|participant, field, operation| {
            self.0.catalog.check(participant, field, operation)
        })?;
        let request_id = request::request_id(&given.request_id)?;
        let locks = request::saga::locks(&given.locks)?;
        let lock_timeout_ms = timeouts.lock.check("lock_timeout", given.lock_timeout)?;
        let timeout_ms = timeouts.saga.check("timeout", given.timeout)?;
        let age_ms = request::age_ms(given.age)?;
        let answer_accepted = request::saga::answer_accepted(given.answer_time)?;
        let submit = move |ticket| {
            Input::SubmitSaga(SubmitSaga {
                ticket,
                unique: Uuid::now_v7().as_u128(),
                request_id,
                fingerprint,
                steps,
                locks,
                lock_timeout_ms,
                age_ms,
                timeout_ms,
                answer_accepted,
                traceparent,
            })
        };
        let answer = handle.call(submit).await?;
        Ok(Response::new(v1::SubmitSagaResponse {
            transaction: Some(transaction(handle, answer)?),
        }))
    }

    async fn begin_transaction(
        &self,
        request: Request<v1::BeginTransactionRequest>,
    ) -> Result<Response<v1::BeginTransactionResponse>, Status> {
        let handle = self.0.handle_for_new()?;
        let traceparent = request::traceparent(request.metadata());
        let given = request.into_inner();
        let request_id = request::request_id(&given.request_id)?;
        let participants = request::participants(&given.participants)?;
        let age_ms = request::age_ms(given.age)?;
        let timeout_ms = self
            .0
            .timeouts
            .transaction
            .check("timeout", given.timeout)?;
        let begin = move |ticket| {
            Input::Begin(Begin {
                ticket,
                unique: Uuid::now_v7().as_u128(),
                request_id,
                participants,
                age_ms,
                timeout_ms,
                traceparent,
            })
        };
        let answer = handle.call(begin).await?;
        Ok(Response::new(v1::BeginTransactionResponse {
            transaction: Some(transaction(handle, answer)?),
        }))
    }

    async fn execute_operation(
        &self,
        request: Request<v1::ExecuteOperationRequest>,
    ) -> Result<Response<v1::ExecuteOperationResponse>, Status> {
        let handle = self.0.handle()?;
        let given = request.into_inner();
        let id = request::transaction_id(&given.transaction_id)?;
        let participant = request::participant("participant", &given.participant)?;
        let operation = given
            .operation
            .ok_or_else(|| Refused::invalid("operation", "must be set"))?;
        reference::refuse("operation", &operation)?;
        self.0
            .catalog
            .check(&participant, "operation", &operation)?;
        let operation = wire::operation(&operation);
        let answer = handle
            .call(|ticket| Input::Execute {
                ticket,
                transaction: id,
                participant,
                operation,
            })
            .await?;
        match answer {
            Answer::Executed(payload) => Ok(Response::new(v1::ExecuteOperationResponse {
                result: Some(wire::operation_result(&payload)),
            })),
            Answer::Transaction(_) => Err(Status::internal(
                "a transaction came as answer to an operation",
            )),
        }
    }

    async fn commit_transaction(
        &self,
        request: Request<v1::CommitTransactionRequest>,
    ) -> Result<Response<v1::CommitTransactionResponse>, Status> {
        let handle = self.0.handle()?;
        let given = request.into_inner();
        let id = request::transaction_id(&given.transaction_id)?;
        let answer_decided = request::answer_decided(given.answer_time)?;
        let answer = handle
            .call(|ticket| Input::Commit {
                ticket,
                transaction: id,
                answer_decided,
            })
            .await?;
        Ok(Response::new(v1::CommitTransactionResponse {
            transaction: Some(transaction(handle, answer)?),
        }))
    }

    async fn abort_transaction(
        &self,
        request: Request<v1::AbortTransactionRequest>,
    ) -> Result<Response<v1::AbortTransactionResponse>, Status> {
        let handle = self.0.handle()?;
        let given = request.into_inner();
        let id = request::transaction_id(&given.transaction_id)?;
        let message = request::reason(given.reason)?;
        let reason = AbortReason {
            code: AbortCode::Client,
            participant: String::new(),
            message,
        };
        let answer = handle
            .call(|ticket| Input::Abort {
                ticket,
                transaction: id,
                reason,
            })
            .await?;
        Ok(Response::new(v1::AbortTransactionResponse {
            transaction: Some(transaction(handle, answer)?),
        }))
    }

    async fn get_transaction(
        &self,
        request: Request<v1::GetTransactionRequest>,
    ) -> Result<Response<v1::GetTransactionResponse>, Status> {
        let handle = self.0.handle()?;
        let id = request::transaction_id(&request.get_ref().transaction_id)?;
        let answer = handle
            .call(|ticket| Input::Lookup {
                ticket,
                transaction: id,
            })
            .await?;
        Ok(Response::new(v1::GetTransactionResponse {
            transaction: Some(transaction(handle, answer)?),
        }))
    }

    async fn list_transactions(
        &self,
        request: Request<v1::ListTransactionsRequest>,
    ) -> Result<Response<v1::ListTransactionsResponse>, Status> {
        let handle = self.0.handle()?;
        let given = request.into_inner();
        let size = request::page_size(given.page_size)?;
        let after = request::page_token(&given.page_token, |token| token.parse().ok())?;
        let filter = Filter {
            states: states(&given.states)?,
            participant: optional_participant(&given.participant)?,
        };
        let (views, next) = handle
            .read(move |engine| page(engine, after, size, &filter))
            .await?;
        Ok(Response::new(v1::ListTransactionsResponse {
            transactions: views
                .iter()
                .map(|view| wire::transaction(view, handle.now()))
                .collect(),
            next_page_token: next.map(|id| id.to_string()).unwrap_or_default(),
        }))
    }

    type WatchTransactionsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchTransactionsResponse, Status>> + Send + 'static>>;

    async fn watch_transactions(
        &self,
        request: Request<v1::WatchTransactionsRequest>,
    ) -> Result<Response<Self::WatchTransactionsStream>, Status> {
        let handle = self.0.handle()?.clone();
        let participant = optional_participant(&request.get_ref().participant)?;
        let filter = Filter {
            states: Vec::new(),
            participant,
        };
        let changes = BroadcastStream::new(handle.watch())
            .filter_map(move |change| {
                std::future::ready(match change {
                    Ok(view) if !filter.fits(&view) => None,
                    Ok(view) => Some(Ok(v1::WatchTransactionsResponse {
                        transaction: Some(wire::transaction(&view, handle.now())),
                    })),
                    Err(BroadcastStreamRecvError::Lagged(missed)) => {
                        Some(Err(Refused::WatchLagged(missed)))
                    }
                })
            })
            .take_until(self.0.closing.clone().cancelled_owned())
            .chain(stream::once(std::future::ready(Err(Refused::Stopping))));
        // An error is the last thing that a watcher hears.
        let changes = changes.scan(false, |ended, change| {
            let item = (!*ended).then(|| change.map_err(Status::from));
            *ended |= item.as_ref().is_some_and(Result::is_err);
            std::future::ready(item)
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

/// Which transactions a list or a watch shows.
#[derive(Debug)]
struct Filter {
    /// Empty for all.
    states: Vec<TransactionState>,
    /// `None` for all.
    participant: Option<ParticipantName>,
}

impl Filter {
    fn fits(&self, view: &TransactionView) -> bool {
        let state = self.states.is_empty() || self.states.contains(&view.state);
        let takes_part = |name: &ParticipantName| {
            let steps = view.saga.iter().flat_map(|saga| &saga.steps);
            view.branches
                .iter()
                .map(|branch| &branch.participant)
                .chain(steps.flat_map(|step| &step.participants))
                .any(|participant| participant == name)
        };
        state && self.participant.as_ref().is_none_or(takes_part)
    }
}

fn states(given: &[i32]) -> Result<Vec<TransactionState>, Refused> {
    let state = |(at, state): (usize, &i32)| {
        wire::state_filter(*state).ok_or_else(|| {
            Refused::invalid(
                format!("states[{at}]"),
                format!("{state} is not a state that is known here"),
            )
        })
    };
    given.iter().enumerate().map(state).collect()
}

fn optional_participant(given: &str) -> Result<Option<ParticipantName>, Refused> {
    if given.is_empty() {
        return Ok(None);
    }
    request::participant("participant", given).map(Some)
}

/// A page, and the last id that was looked at where there is more after it.
fn page(
    engine: &Engine,
    after: Option<TransactionId>,
    size: usize,
    filter: &Filter,
) -> (Vec<TransactionView>, Option<TransactionId>) {
    let mut views = Vec::new();
    let mut last = None;
    for (looked_at, view) in engine.transactions(after).enumerate() {
        if views.len() == size || looked_at == SCAN {
            return (views, last);
        }
        last = Some(view.id);
        if filter.fits(&view) {
            views.push(view);
        }
    }
    (views, None)
}
