//! A service over TLS.

use std::{fs, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};
use unanimity_participant::{
    http::{HttpAgent, HttpArguments, HttpConfig},
    participant::{Participant, Settled, Vote},
};
use unanimity_proto::v1::AbortCode;
use unanimity_tests::service::Service;

use super::{branch, charge, configure, prepare};

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn acceptor(authority: &CertifiedIssuer<'static, KeyPair>) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    Arc::new(config).into()
}

#[tokio::test]
async fn only_the_configured_authority_is_trusted_and_headers_reach_the_service() {
    let (trusted, other) = (authority(), authority());
    let acceptor = acceptor(&trusted);
    let service = Service::start_over(move |stream| {
        let accepting = acceptor.accept(stream);
        async { accepting.await.ok() }
    })
    .await;
    let mut found = Vec::new();
    for signer in [&trusted, &other] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.pem"), signer.pem()).unwrap();
        fs::write(
            directory.path().join("header"),
            "Authorization: Bearer hunter2",
        )
        .unwrap();
        let keys = "service_ca = \"ca.pem\"\nheader_file = \"header\"";
        let config = HttpConfig::load(HttpArguments {
            config: Some(configure(directory.path(), keys)),
            service: Some(format!("https://{}", service.address)),
            ..HttpArguments::default()
        });
        let agent = HttpAgent::open(&config.unwrap()).await.unwrap();
        found.push(agent.prepare(prepare(1, [charge()])).await);
        assert_eq!(agent.abort(&branch(1), "").await, Settled::Aborted);
    }
    let [Vote::Yes { .. }, Vote::No(refusal)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(refusal.code, AbortCode::ParticipantUnavailable);
    assert!(refusal.message.contains("certificate"), "{refusal}");
    assert_eq!(service.paths(), ["/try", "/cancel"]);
    let headers = &service.got()[0].headers;
    assert_eq!(headers["authorization"], "Bearer hunter2");
}
