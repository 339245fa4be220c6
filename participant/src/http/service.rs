//! The way to the service: one POST, its answer, and the certainty about it.
//!
//! Connections are kept for the next request, but not for long: a service that closes an idle one in the moment in which it is used leaves a
//! request without an answer.

use std::{error::Error, io, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderValue, Request,
    header::{ACCEPT, CONTENT_TYPE},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::time::{Instant, timeout_at};

use super::{
    answer::{Answer, Body, clean, meaning, too_slow},
    config::ServiceConfig,
    operations::Endpoint,
};
use crate::{agent::AgentError, participant::STEP_RESULT_BYTES};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Shorter than what servers keep an idle connection for (gunicorn: 2 s; Node: 5 s).
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long is waited for anything at most: the clock can't count to the end of the longest durations.
const LONGEST: Duration = Duration::from_secs(86_400);

/// One request.
pub(super) struct Post<'a> {
    pub(super) endpoint: &'a Endpoint,
    /// The same however often it is sent.
    pub(super) key: String,
    pub(super) traceparent: &'a str,
    /// JSON.
    pub(super) body: Vec<u8>,
}

/// The service.
pub(super) struct Service {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    headers: HeaderMap,
}

impl Service {
    /// Calls nobody yet.
    pub(super) fn new(config: &ServiceConfig) -> Result<Self, AgentError> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(config)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self {
            client,
            headers: config.headers.clone(),
        })
    }

    /// Sends one request, and reads its answer.
    pub(super) async fn post(&self, post: Post<'_>, limit: Duration) -> Answer {
        let name = post.endpoint.to_string();
        let limit = limit.min(LONGEST);
        let deadline = Instant::now() + limit;
        let response = match timeout_at(deadline, self.client.request(self.request(post))).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_connect() => {
                return Answer::NotTaken(format!("{name} can't be reached: {}", causes(&error)));
            }
            Ok(Err(error)) => {
                return Answer::Unknown(format!("{name} gives no answer: {}", causes(&error)));
            }
            Err(_) => return too_slow(&name, limit),
        };
        failpoint!("participant.http.answered");
        let (head, body) = response.into_parts();
        let body = timeout_at(deadline, read(body))
            .await
            .unwrap_or_else(|_| Body::Broken(format!("no more comes within {limit:?}")));
        meaning(&name, head.status, &head.headers, body)
    }

    fn request(&self, post: Post<'_>) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(post.body.into()));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = post.endpoint.uri().clone();
        let headers = request.headers_mut();
        headers.extend(self.headers.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let key = HeaderValue::from_str(&post.key).expect("ids are of digits, letters and dots");
        headers.insert("idempotency-key", key);
        if let Ok(traceparent) = HeaderValue::from_str(post.traceparent)
            && !traceparent.is_empty()
        {
            headers.insert("traceparent", traceparent);
        }
        request
    }
}

/// Reads a body, but never more of it than is taken: what is said to be larger is not read at all.
async fn read(body: Incoming) -> Body {
    if body.size_hint().lower() > STEP_RESULT_BYTES as u64 {
        return Body::TooLarge;
    }
    match Limited::new(body, STEP_RESULT_BYTES).collect().await {
        Ok(whole) => Body::Whole(whole.to_bytes().into()),
        Err(error) if error.is::<LengthLimitError>() => Body::TooLarge,
        Err(error) => Body::Broken(causes(&*error)),
    }
}

/// The authorities that are trusted: the configured one alone, or else the system's. A plain service needs none.
fn tls(config: &ServiceConfig) -> Result<ClientConfig, AgentError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks both versions of TLS");
    let refused = |problem: String, remedy: &str| AgentError::Refused {
        problem,
        remedy: remedy.into(),
    };
    let builder = match &config.authority {
        Some(pem) => {
            let remedy = "give one or more certificates in PEM form, the authority's own";
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                certificate
                    .map_err(io::Error::other)
                    .and_then(|certificate| roots.add(certificate).map_err(io::Error::other))
                    .map_err(|error| refused(format!("service_ca: {error}"), remedy))?;
            }
            if roots.is_empty() {
                return Err(refused("service_ca holds no certificate".into(), remedy));
            }
            builder.with_root_certificates(roots)
        }
        None if config.encrypted => builder.with_native_roots().map_err(|error| {
            let remedy = "install the system's certificates, or give service_ca";
            refused(
                format!("the system's certificates can't be read: {error}"),
                remedy,
            )
        })?,
        None => builder.with_root_certificates(RootCertStore::empty()),
    };
    Ok(builder.with_no_client_auth())
}

/// hyper's own text is only "client error (Connect)"; the causes say what happened.
fn causes(error: &dyn Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
        next = cause.source();
    }
    clean(&texts.join(": "))
}
