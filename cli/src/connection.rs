//! The way to the coordinator.

use std::{fs, path::Path, time::Duration};

use tonic::{
    Request, Response, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use unanimity_proto::v1::{
    admin_service_client::AdminServiceClient, transaction_service_client::TransactionServiceClient,
};

use crate::{
    Global,
    exit::{Effect, Exit, Failure, innermost},
};

/// The services of one coordinator.
pub(crate) struct Connection {
    pub(crate) transactions: TransactionServiceClient<Channel>,
    pub(crate) admin: AdminServiceClient<Channel>,
    timeout: Duration,
}

impl Connection {
    /// Connects at once, so that "not there" is told apart from "no answer".
    pub(crate) async fn open(global: &Global) -> Result<Self, Failure> {
        let channel = endpoint(global)?.connect().await.map_err(|error| {
            let address = &global.coordinator;
            let message = format!(
                "can't connect to the coordinator at {address}: {}",
                innermost(&error)
            );
            Failure::new(Exit::Unavailable, message).advise(
                "is it running there? --coordinator or UNANIMITY_COORDINATOR names another one",
            )
        })?;
        Ok(Self {
            transactions: TransactionServiceClient::new(channel.clone())
                .max_decoding_message_size(usize::MAX),
            admin: AdminServiceClient::new(channel).max_decoding_message_size(usize::MAX),
            timeout: global.timeout,
        })
    }

    /// A request that tells the coordinator how long we wait.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    /// The answer, or why there is none.
    pub(crate) async fn answer<T>(
        &self,
        effect: Effect,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failure::from_status(&status, effect)),
            Err(_) => Err(Failure::no_answer(
                format!("none came within {:?}", self.timeout),
                effect,
            )),
        }
    }
}

fn endpoint(global: &Global) -> Result<Endpoint, Failure> {
    let refuse = |error: String| {
        Failure::new(
            Exit::Usage,
            format!("--coordinator {}: {error}", global.coordinator),
        )
    };
    let endpoint = Endpoint::from_shared(global.coordinator.clone())
        .map_err(|error| refuse(innermost(&error)))?
        .connect_timeout(global.timeout);
    match endpoint.uri().scheme_str() {
        Some("https") => endpoint
            .tls_config(tls(global)?)
            .map_err(|error| refuse(innermost(&error))),
        Some("http") if global.ca.is_some() || global.certificate.is_some() => {
            Err(refuse("certificates need an https address".into()))
        }
        Some("http") => Ok(endpoint),
        _ => Err(refuse("it must start with http:// or https://".into())),
    }
}

fn tls(global: &Global) -> Result<ClientTlsConfig, Failure> {
    let tls = match &global.ca {
        Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    Ok(match (&global.certificate, &global.key) {
        (Some(certificate), Some(key)) => {
            tls.identity(Identity::from_pem(read(certificate)?, read(key)?))
        }
        _ => tls,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| {
        Failure::new(
            Exit::Usage,
            format!("can't read {}: {error}", path.display()),
        )
    })
}
