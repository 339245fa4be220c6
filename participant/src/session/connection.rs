//! One connection to the coordinator: dialled, greeted, and ready for batches.
//!
//! Keep-alive pings are a must: without them a participant stays stuck on a stream whose other end has gone.

use std::time::Duration;

use tonic::{
    Code, Status, Streaming,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::StatusExt;
use unanimity_proto::v1::{self, participant_service_client::ParticipantServiceClient};

use super::{
    InvalidOptions, Tls,
    outbox::{self, Outbox},
};
use crate::{
    participant::Unavailable,
    wire::{self, Incoming, Welcome},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// The largest batch that is taken from the coordinator.
const BATCH_BYTES: usize = 64 << 20;

/// Why a connection could not be opened, or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Not there, lost, or too slow: try again.
    #[error("{0}")]
    Lost(String),
    /// The coordinator does not take this participant: a human must look.
    #[error("{message}")]
    Refused {
        /// For people.
        message: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A coordinator from before the one that was seen last.
    #[error("the coordinator of log {} says epoch {}, but epoch {seen} was seen: it is an old one", welcome.log_id, welcome.epoch)]
    StaleEpoch {
        /// What it said.
        welcome: Welcome,
        /// The highest epoch seen of its log.
        seen: u64,
    },
    /// The in-doubt branches can't be read, and a hello without them would be a lie.
    #[error("the resource can't be reached: {0}")]
    Resource(#[from] Unavailable),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // What the transport reports has its cause as a source; what the coordinator says has none.
        let said = std::error::Error::source(&status)
            .map_or_else(|| status.message().to_owned(), with_causes);
        let message = format!("{}: {said}", status.code().description());
        match status.code() {
            Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented => Self::Refused {
                message,
                remedy: remedy(&status),
            },
            _ => Self::Lost(message),
        }
    }
}

/// What to do about a refusal, by its constant reason or else its code.
fn remedy(status: &Status) -> &'static str {
    let info = status.get_details_error_info();
    match (
        info.as_ref().map(|info| info.reason.as_str()),
        status.code(),
    ) {
        (Some("RESOURCE_MISMATCH"), _) => {
            "use the database that this participant's other agents use, or give this one another name"
        }
        (Some("INVALID_REQUEST"), _) => {
            "correct what it names; where that is the protocol's version, run agent and coordinator of one release"
        }
        (_, Code::Unimplemented) => {
            "check the coordinator's address: no unanimity-coordinator of this version answers there"
        }
        (_, Code::PermissionDenied | Code::Unauthenticated) => {
            "check the certificate that this participant shows"
        }
        _ => {
            "check this participant's name, database and version against those of the coordinator and of its other agents"
        }
    }
}

/// An open stream, after the hello.
pub(crate) struct Connection {
    /// The way up.
    pub(crate) outbox: Outbox,
    /// Whose log decides.
    pub(crate) log_id: String,
    inbound: Streaming<v1::SessionResponse>,
    /// What came in one batch with the welcome.
    arrived: Option<v1::SessionResponse>,
}

/// Checks where to dial.
pub(crate) fn endpoint(coordinator: &str, tls: Option<&Tls>) -> Result<Endpoint, InvalidOptions> {
    let endpoint = Endpoint::from_shared(coordinator.to_owned())
        .map_err(|error| InvalidOptions::Coordinator {
            uri: coordinator.into(),
            problem: error.to_string(),
        })?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let problem = |problem: &str| InvalidOptions::Coordinator {
        uri: coordinator.into(),
        problem: problem.into(),
    };
    match (endpoint.uri().scheme_str(), tls) {
        (Some("http"), None) => Ok(endpoint),
        (Some("https"), Some(tls)) => endpoint
            .tls_config(tls_config(tls))
            .map_err(|error| InvalidOptions::Tls(error.to_string())),
        (Some("https"), None) => Err(problem(
            "https needs the certificate of the authority that signed the coordinator's",
        )),
        (Some("http"), Some(_)) => Err(problem(
            "certificates were given, but http:// is not encrypted; write https://",
        )),
        _ => Err(problem("it must begin with http:// or https://")),
    }
}

fn tls_config(tls: &Tls) -> ClientTlsConfig {
    let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.authority));
    match &tls.identity {
        Some(identity) => config.identity(Identity::from_pem(&identity.certificate, &identity.key)),
        None => config,
    }
}

impl Connection {
    /// Dials, says hello, and waits for the welcome.
    pub(crate) async fn open(
        endpoint: &Endpoint,
        hello: impl Future<Output = Result<v1::Hello, Unavailable>>,
    ) -> Result<(Self, Welcome), Failure> {
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| Failure::Lost(with_causes(&error)))?;
        // Asked after dialling, so that what the hello tells is as fresh as can be.
        let hello = hello.await?;
        let greeting = Self::greet(ParticipantServiceClient::new(channel), hello);
        tokio::time::timeout(WELCOME_TIMEOUT, greeting)
            .await
            .unwrap_or_else(|_| {
                Err(Failure::Lost(format!(
                    "no welcome within {WELCOME_TIMEOUT:?}"
                )))
            })
    }

    async fn greet(
        client: ParticipantServiceClient<tonic::transport::Channel>,
        hello: v1::Hello,
    ) -> Result<(Self, Welcome), Failure> {
        let (outbox, batches) = outbox::channel();
        // Nobody else has the outbox yet: the hello goes alone.
        failpoint!("participant.session.hello");
        outbox.send(wire::hello(hello));
        let mut client = client.max_decoding_message_size(BATCH_BYTES);
        let inbound = client.session(batches).await?.into_inner();
        let mut connection = Self {
            outbox,
            log_id: String::new(),
            inbound,
            arrived: None,
        };
        let mut batch = connection.next_batch().await?;
        let mut messages = batch.messages.into_iter();
        let Some(Ok(Incoming::Welcome(welcome))) = messages.next().map(wire::parse) else {
            return Err(Failure::Lost(
                "the coordinator's first message was no welcome".into(),
            ));
        };
        connection.log_id.clone_from(&welcome.log_id);
        batch.messages = messages.collect();
        connection.arrived = Some(batch);
        failpoint!("participant.session.welcomed");
        Ok((connection, welcome))
    }

    /// The next messages; can be dropped while it waits without losing any.
    pub(crate) async fn next_batch(&mut self) -> Result<v1::SessionResponse, Failure> {
        if let Some(arrived) = self.arrived.take() {
            return Ok(arrived);
        }
        let batch = self.inbound.message().await?;
        batch.ok_or_else(|| Failure::Lost("the coordinator closed the session".into()))
    }

    /// Sends what is queued, says that no more comes, and waits a moment for the coordinator to close. What still arrives is not acted on: the
    /// coordinator sends it again in the next session.
    pub(crate) async fn finish(self) {
        let Self {
            outbox,
            mut inbound,
            ..
        } = self;
        drop(outbox);
        let closed = async { while let Ok(Some(_)) = inbound.message().await {} };
        // Past the time the stream is torn down instead, which loses nothing that isn't asked for again.
        _ = tokio::time::timeout(GOODBYE_TIMEOUT, closed).await;
    }
}

/// tonic's own text is only "transport error"; the cause says what happened.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let detail = error.to_string();
        if !text.ends_with(&detail) {
            text = format!("{text}: {detail}");
        }
        cause = error.source();
    }
    text
}
