//! Doors for the fuzz targets: what reads strangers' messages here and is private. No part of the API.

use unanimity_engine::{
    Downward, LockKey, Opened, ParticipantName, Payload, SessionId, StepDefinition, Upward,
};
use unanimity_proto::v1;

use crate::outlet::Batch;
use crate::{
    Refused,
    catalog::Catalog,
    config::Config,
    fingerprint, request,
    services::participant,
    wire::{self, Mistake, reference},
};
use unanimity_engine::Seq;

/// Reads the first batch of a session.
///
/// # Errors
/// As the session's.
pub fn hello(first: v1::SessionRequest) -> Result<Opened, Refused> {
    participant::hello(SessionId(1), first).map(|(opened, _)| opened)
}

/// Reads a message of the participant `sender`; `None` where it is ignored.
///
/// # Errors
/// Where the session would end.
pub fn upward(
    sender: &ParticipantName,
    message: v1::ParticipantMessage,
) -> Result<Option<Upward>, Refused> {
    match wire::upward(sender, message) {
        Ok(message) => Ok(Some(message)),
        Err(Mistake::Stray(_)) => Ok(None),
        Err(Mistake::Fatal(refused)) => Err(refused),
    }
}

/// Writes a batch for a participant.
pub fn batches(messages: Vec<Downward>) -> Vec<v1::SessionResponse> {
    wire::batches(Batch {
        messages,
        durable: Seq(1),
    })
}

/// Checks a submit as the service does.
///
/// # Errors
/// As the service's.
pub fn submit(
    given: v1::SubmitTransactionRequest,
) -> Result<Vec<(ParticipantName, Payload)>, Refused> {
    let catalog = Catalog::default();
    let check = |participant: &_, field: &str, operation: &_| {
        reference::refuse(field, operation)?;
        catalog.check(participant, field, operation)
    };
    let timeouts = Config::new("").timeouts();
    let branches = request::branches("branches", given.branches, check)?;
    request::request_id(&given.request_id)?;
    request::age_ms(given.age)?;
    timeouts.transaction.check("timeout", given.timeout)?;
    request::answer_decided(given.answer_time)?;
    let work = branches
        .iter()
        .map(|(name, work)| (name.as_str(), &work[..]));
    fingerprint::of(work);
    Ok(branches
        .into_iter()
        .map(|(name, operations)| (name, wire::work(operations)))
        .collect())
}

/// Checks a saga as the service does.
///
/// # Errors
/// As the service's.
pub fn submit_saga(
    given: v1::SubmitSagaRequest,
) -> Result<(Vec<StepDefinition>, Vec<LockKey>), Refused> {
    let (catalog, timeouts) = (Catalog::default(), Config::new("").timeouts());
    fingerprint::of_saga(&given.steps, &given.locks);
    let check =
        |participant: &_, field: &str, operation: &_| catalog.check(participant, field, operation);
    let steps = request::saga::steps(given.steps, &check)?;
    request::request_id(&given.request_id)?;
    let locks = request::saga::locks(&given.locks)?;
    timeouts.lock.check("lock_timeout", given.lock_timeout)?;
    timeouts.saga.check("timeout", given.timeout)?;
    request::age_ms(given.age)?;
    request::saga::answer_accepted(given.answer_time)?;
    Ok((steps, locks))
}
