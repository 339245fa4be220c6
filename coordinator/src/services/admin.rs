//! What operators call.

use tonic::{Request, Response, Status};
use unanimity_engine::{BranchKey, Input, LockKey, LockView, ParticipantName};
use unanimity_proto::v1::{self, admin_service_server::AdminService};

use super::{Front, transaction};
use crate::{error::Refused, request, wire};

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Admin(pub(crate) Front);

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_coordinator(
        &self,
        _: Request<v1::GetCoordinatorRequest>,
    ) -> Result<Response<v1::GetCoordinatorResponse>, Status> {
        let response = self.0.handle()?.read(|engine| v1::GetCoordinatorResponse {
            log_id: engine.incarnation().log.to_string(),
            epoch: engine.incarnation().epoch.0,
            version: env!("CARGO_PKG_VERSION").into(),
            active_transactions: engine.in_flight() as u64,
            durable_sequence: engine.durable().0,
        });
        Ok(Response::new(response.await?))
    }

    async fn list_participants(
        &self,
        request: Request<v1::ListParticipantsRequest>,
    ) -> Result<Response<v1::ListParticipantsResponse>, Status> {
        let handle = self.0.handle()?;
        let size = request::page_size(request.get_ref().page_size)?;
        let after = request::page_token(&request.get_ref().page_token, ParticipantName::parse)?;
        let mut views = handle.read(|engine| engine.participants()).await?;
        views.sort_by(|one, other| one.name.cmp(&other.name));
        views.retain(|view| after.as_ref().is_none_or(|after| view.name > *after));
        let more = views.len() > size;
        views.truncate(size);
        let last = views
            .last()
            .filter(|_| more)
            .map(|view| view.name.to_string());
        Ok(Response::new(v1::ListParticipantsResponse {
            participants: views.iter().map(wire::participant).collect(),
            next_page_token: last.unwrap_or_default(),
        }))
    }

    async fn list_in_doubt_branches(
        &self,
        request: Request<v1::ListInDoubtBranchesRequest>,
    ) -> Result<Response<v1::ListInDoubtBranchesResponse>, Status> {
        let handle = self.0.handle()?;
        let size = request::page_size(request.get_ref().page_size)?;
        let after = request::page_token(&request.get_ref().page_token, in_doubt_token)?;
        let mut views = handle.read(|engine| engine.in_doubt()).await?;
        views.sort_by(|one, other| {
            (&one.identifier, &one.participant).cmp(&(&other.identifier, &other.participant))
        });
        views.retain(|view| {
            after.as_ref().is_none_or(|(identifier, participant)| {
                (&view.identifier, &view.participant) > (identifier, participant)
            })
        });
        let more = views.len() > size;
        views.truncate(size);
        let last = views
            .last()
            .filter(|_| more)
            .map(|view| format!("{}/{}", view.participant, view.identifier));
        Ok(Response::new(v1::ListInDoubtBranchesResponse {
            branches: views.iter().map(wire::in_doubt).collect(),
            next_page_token: last.unwrap_or_default(),
        }))
    }

    async fn retry_transaction(
        &self,
        request: Request<v1::RetryTransactionRequest>,
    ) -> Result<Response<v1::RetryTransactionResponse>, Status> {
        let handle = self.0.handle()?;
        let id = request::transaction_id(&request.get_ref().transaction_id)?;
        let answer = handle
            .call(|ticket| Input::Retry {
                ticket,
                transaction: id,
            })
            .await?;
        Ok(Response::new(v1::RetryTransactionResponse {
            transaction: Some(transaction(handle, answer)?),
        }))
    }

    async fn resolve_step(
        &self,
        request: Request<v1::ResolveStepRequest>,
    ) -> Result<Response<v1::ResolveStepResponse>, Status> {
        let handle = self.0.handle()?;
        let given = request.into_inner();
        let id = request::transaction_id(&given.transaction_id)?;
        let step = request::saga::step_name("step", &given.step)?;
        let reason = request::resolution_reason(given.reason)?;
        let answer = handle
            .call(|ticket| Input::ResolveStep {
                ticket,
                transaction: id,
                step: step.as_str().into(),
                reason,
            })
            .await?;
        Ok(Response::new(v1::ResolveStepResponse {
            transaction: Some(transaction(handle, answer)?),
        }))
    }

    async fn list_locks(
        &self,
        request: Request<v1::ListLocksRequest>,
    ) -> Result<Response<v1::ListLocksResponse>, Status> {
        let handle = self.0.handle()?;
        let size = request::page_size(request.get_ref().page_size)?;
        let after = request::page_token(&request.get_ref().page_token, LockKey::parse)?;
        let views = handle.read(move |engine| engine.locks(after).take(size + 1).collect());
        let mut views: Vec<LockView> = views.await?;
        let more = views.len() > size;
        views.truncate(size);
        let last = views.last().filter(|_| more);
        Ok(Response::new(v1::ListLocksResponse {
            next_page_token: last
                .map(|view| view.key.as_str().into())
                .unwrap_or_default(),
            locks: views.iter().map(wire::lock).collect(),
        }))
    }

    async fn resolve_branch(
        &self,
        request: Request<v1::ResolveBranchRequest>,
    ) -> Result<Response<v1::ResolveBranchResponse>, Status> {
        let handle = self.0.handle()?;
        let given = request.into_inner();
        let transaction_id = request::transaction_id(&given.transaction_id)?;
        if given.branch == 0 {
            return Err(
                Refused::invalid("branch", "must be set; branches are numbered from 1").into(),
            );
        }
        let branch = BranchKey {
            transaction: transaction_id,
            branch: given.branch,
        };
        let resolution = wire::resolution(given.resolution)
            .ok_or_else(|| Refused::invalid("resolution", "must be COMMITTED or ABORTED"))?;
        let reason = request::resolution_reason(given.reason)?;
        let answer = handle
            .call(|ticket| Input::Resolve {
                ticket,
                branch,
                resolution,
                reason,
            })
            .await?;
        Ok(Response::new(v1::ResolveBranchResponse {
            transaction: Some(transaction(handle, answer)?),
        }))
    }
}

/// `<participant>/<identifier>`: a participant's name has no slash, an identifier may have anything.
fn in_doubt_token(token: &str) -> Option<(String, ParticipantName)> {
    let (participant, identifier) = token.split_once('/')?;
    Some((identifier.to_owned(), ParticipantName::parse(participant)?))
}
