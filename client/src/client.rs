//! The connection to the coordinator.

use std::{fmt, time::Duration};

use tokio::time::Instant;
use tonic::{
    Response, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use unanimity_proto::v1::{self, transaction_service_client::TransactionServiceClient};

use crate::{
    Begin, Error, Listing, SagaSubmission, Snapshot, Submission,
    error::Verdict,
    retry::{Failure, LONGEST_WAIT, Patience, persist},
    submit::limited,
};

/// A client of one coordinator. Clones are cheap and share the connection, which is made when it is first needed and made again
/// when it breaks.
#[derive(Clone)]
pub struct Client {
    service: TransactionServiceClient<Channel>,
    runtime: tokio::runtime::Handle,
    call_timeout: Duration,
    retry_for: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the coordinator at `uri`, like `http://127.0.0.1:7420`, with the default settings. It connects when first used, so a
    /// coordinator that is down shows with the first call, after its retries.
    ///
    /// # Errors
    /// [`Error::Invalid`] where `uri` is none.
    pub async fn connect(uri: impl Into<String>) -> Result<Self, Error> {
        Self::builder(uri).build()
    }

    /// A client with other settings.
    pub fn builder(uri: impl Into<String>) -> Builder {
        Builder {
            uri: uri.into(),
            tls: None,
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            retry_for: Duration::from_secs(30),
        }
    }

    /// A transaction to submit in one request, the fast path.
    pub fn transaction(&self) -> Submission {
        Submission::new(self.clone())
    }

    /// A saga to submit: steps that each commit at once, and are undone where the whole can't be done.
    pub fn saga(&self) -> SagaSubmission {
        SagaSubmission::new(self.clone())
    }

    /// An interactive transaction to open.
    pub fn begin(&self) -> Begin {
        Begin::new(self.clone())
    }

    /// Looks a transaction up.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`] with [`crate::Reason::OutcomePending`] where a participant must be asked first and is away.
    pub async fn lookup(&self, transaction_id: impl Into<String>) -> Result<Snapshot, Error> {
        let request = v1::GetTransactionRequest {
            transaction_id: transaction_id.into(),
        };
        let response = self
            .read(
                |mut service, request| async move { service.get_transaction(request).await },
                request,
            )
            .await?;
        Snapshot::from_wire(response.transaction).map_err(harmless)
    }

    /// Lists transactions, newest first.
    pub fn list(&self) -> Listing {
        Listing::new(self.clone())
    }

    /// Aborts a transaction that is not decided, or turns a saga back that is not past its pivot. Asked again, it gives the same answer.
    ///
    /// # Errors
    /// [`Error::Refused`] where it is too late, [`Error::NotFound`], [`Error::Unavailable`].
    pub async fn abort(
        &self,
        transaction_id: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<Snapshot, Error> {
        let request = v1::AbortTransactionRequest {
            transaction_id: transaction_id.into(),
            reason: reason.into(),
        };
        let response = self
            .read(
                |mut service, request| async move { service.abort_transaction(request).await },
                request,
            )
            .await?;
        Snapshot::from_wire(response.transaction).map_err(harmless)
    }

    pub(crate) fn service(&self) -> TransactionServiceClient<Channel> {
        self.service.clone()
    }

    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    pub(crate) fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    pub(crate) fn patience(&self, retry_for: Option<Duration>) -> Patience {
        Patience {
            start_until: Instant::now() + retry_for.unwrap_or(self.retry_for).min(LONGEST_WAIT),
            end_by: None,
            attempt: self.call_timeout,
        }
    }

    /// A call that may run any number of times: a doubt about it is only unavailability.
    pub(crate) async fn read<Q, A, Fut>(
        &self,
        call: impl Fn(TransactionServiceClient<Channel>, tonic::Request<Q>) -> Fut,
        request: Q,
    ) -> Result<A, Error>
    where
        Q: Clone,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        let attempt = |limit| {
            let answer = call(self.service(), limited(request.clone(), limit));
            async move {
                answer
                    .await
                    .map(Response::into_inner)
                    .map_err(Verdict::from)
            }
        };
        persist(self.patience(None), attempt)
            .await
            .map_err(|Failure { last, .. }| harmless(last))
    }
}

/// The error of a call whose effect is the same however often it ran.
pub(crate) fn harmless(verdict: Verdict) -> Error {
    match verdict {
        Verdict::NotTaken(error) => error,
        Verdict::MaybeTaken(doubt) => doubt.into(),
        Verdict::Aborted(notice) => Error::Refused {
            reason: crate::Reason::TransactionAborted,
            message: notice.message,
        },
    }
}

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
#[must_use = "no client until build()"]
pub struct Builder {
    uri: String,
    tls: Option<Tls>,
    connect_timeout: Duration,
    call_timeout: Duration,
    retry_for: Duration,
}

impl Builder {
    /// How to prove who is who; needs an `https` address. Without it such an address is checked against the system's authorities.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How long making the connection may take: 5 s by default.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long one attempt waits for its answer, or for the transaction's own timeout where that is longer: 30 s by default, 30 days at most.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// For how long attempts are started again: 30 s by default, 30 days at most.
    pub fn retry_for(mut self, time: Duration) -> Self {
        self.retry_for = time;
        self
    }

    /// Makes the client, which connects when it is first used.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the address or the certificates are none.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn build(self) -> Result<Client, Error> {
        let invalid = |error: tonic::transport::Error| Error::invalid("uri", describe(&error));
        let mut endpoint = Endpoint::from_shared(self.uri.clone())
            .map_err(invalid)?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            // Without keep-alive a client stays stuck on a connection that a partition broke.
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .user_agent(concat!("unanimity-client/", env!("CARGO_PKG_VERSION")))
            .map_err(invalid)?;
        match (endpoint.uri().scheme_str(), self.tls) {
            (Some("http"), None) => {}
            (Some("https"), tls) => {
                endpoint = endpoint
                    .tls_config(tls.unwrap_or_default().into())
                    .map_err(invalid)?;
            }
            (Some("http"), Some(_)) => {
                return Err(Error::invalid("uri", "TLS needs an https address"));
            }
            _ => {
                return Err(Error::invalid(
                    "uri",
                    format!("{} is no http or https address", self.uri),
                ));
            }
        }
        Ok(Client {
            // A limit of our own would turn an answer that is there into a doubt.
            service: TransactionServiceClient::new(endpoint.connect_lazy())
                .max_decoding_message_size(usize::MAX),
            runtime: tokio::runtime::Handle::current(),
            call_timeout: self.call_timeout,
            retry_for: self.retry_for,
        })
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Whom to trust, and who we are. All in PEM.
#[derive(Clone, Default)]
pub struct Tls {
    authority: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    domain_name: Option<String>,
}

impl Tls {
    /// Trusts the system's authorities.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts these authorities instead.
    #[must_use]
    pub fn authority(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authority = Some(pem.into());
        self
    }

    /// Shows this certificate, proved by its key.
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// The name that the coordinator's certificate must carry, where it is not the address's.
    #[must_use]
    pub fn domain_name(mut self, name: impl Into<String>) -> Self {
        self.domain_name = Some(name.into());
        self
    }
}

/// The key stays out of logs.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("domain_name", &self.domain_name)
            .finish_non_exhaustive()
    }
}

impl From<Tls> for ClientTlsConfig {
    fn from(tls: Tls) -> Self {
        let config = Self::new();
        let config = match tls.authority {
            Some(pem) => config.ca_certificate(Certificate::from_pem(pem)),
            None => config.with_native_roots(),
        };
        let config = match tls.identity {
            Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
            None => config,
        };
        match tls.domain_name {
            Some(name) => config.domain_name(name),
            None => config,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wrong_address_is_refused_at_once() {
        for uri in ["", "not a uri", "ftp://127.0.0.1:1", "127.0.0.1:7420"] {
            let refused = Client::connect(uri).await;
            assert!(
                matches!(refused, Err(Error::Invalid { .. })),
                "{uri:?}: {refused:?}"
            );
        }
        let tls = Client::builder("http://127.0.0.1:1")
            .tls(Tls::new())
            .build();
        assert!(matches!(tls, Err(Error::Invalid { .. })));
    }
}
