//! The coordinator behind TLS: who is let in, and who isn't.

use std::{fs, path::PathBuf, process::Command};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use unanimity_client::{Client, Error, Outcome, Tls};
use unanimity_tests::{
    bank::{Bank, INITIAL_BALANCE, committed, transfer},
    binaries,
    patience::{eventually, eventually_blocking},
    process::Process,
    system::{Agent, Scratch, Setup},
};

/// An authority of our own.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

/// A certificate and its key, as files.
struct Identity {
    certificate: PathBuf,
    key: PathBuf,
}

impl Authority {
    fn new(scratch: &Scratch, name: &str) -> Self {
        let mut params = CertificateParams::new([]).expect("no names are good names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("there is randomness");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("it can sign itself");
        let file = scratch.path(&format!("{name}.pem"));
        fs::write(&file, issuer.pem()).expect("the directory is ours");
        Self { issuer, file }
    }

    fn issue(&self, scratch: &Scratch, name: &str) -> Identity {
        let params = CertificateParams::new(["127.0.0.1".to_owned(), name.to_owned()]);
        let own = KeyPair::generate().expect("there is randomness");
        let certificate = params.expect("good names").signed_by(&own, &self.issuer);
        let identity = Identity {
            certificate: scratch.path(&format!("{name}.certificate.pem")),
            key: scratch.path(&format!("{name}.key.pem")),
        };
        let pem = certificate.expect("it can sign").pem();
        fs::write(&identity.certificate, pem).expect("the directory is ours");
        fs::write(&identity.key, own.serialize_pem()).expect("the directory is ours");
        identity
    }
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("test directories have plain names")
}

/// A coordinator that shows `identity` and takes in whom `authority` knows, and its address.
fn serve(scratch: &Scratch, authority: &Authority, identity: &Identity) -> (Process, String) {
    let ready = scratch.path("ready");
    let mut setup = Setup::new(scratch);
    let options = [
        ("--tls-certificate", &identity.certificate),
        ("--tls-key", &identity.key),
        ("--tls-client-authority", &authority.file),
        ("--ready-file", &ready),
    ];
    for (option, file) in options {
        setup = setup.with(&[option, text(file)]);
    }
    let mut process = setup.launch();
    eventually_blocking("the coordinator serves", || {
        assert!(process.ended().is_none(), "{}", process.log());
        ready.exists().then_some(())
    });
    (process, format!("https://127.0.0.1:{}", setup.port))
}

fn client(address: &str, tls: Tls) -> Client {
    let builder = Client::builder(address).tls(tls);
    let once = builder.retry_for(std::time::Duration::ZERO);
    once.build().expect("good certificates")
}

fn read(path: &std::path::Path) -> Vec<u8> {
    fs::read(path).expect("it is there")
}

/// Where the connection breaks after the client has begun to speak, it can't tell that it wasn't heard.
fn is_not_committed(who: &str, outcome: &Result<Outcome, Error>) {
    assert!(
        matches!(outcome, Err(_) | Ok(Outcome::Unknown(_))),
        "a client {who}: {outcome:?}"
    );
}

#[tokio::test]
async fn whoever_shows_a_certificate_is_served_and_nobody_else() {
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch, "authority");
    let (_coordinator, address) = serve(
        &scratch,
        &authority,
        &authority.issue(&scratch, "coordinator"),
    );
    let member = authority.issue(&scratch, "member");

    let agent_options = [
        ("--coordinator-ca", &authority.file),
        ("--coordinator-certificate", &member.certificate),
        ("--coordinator-key", &member.key),
    ]
    .map(|(option, file)| [option, text(file)])
    .concat();
    let (lite, post) = (
        Bank::sqlite(&scratch, "lite").await,
        Bank::postgres("post").await,
    );
    let _lite = Agent::launch(&scratch, &address, &lite, &agent_options);
    let _post = Agent::launch(&scratch, &address, &post, &agent_options);

    let trusted = Tls::new().authority(read(&authority.file));
    let shown = trusted
        .clone()
        .identity(read(&member.certificate), read(&member.key));
    let known = client(&address, shown);
    let outcome = eventually("both agents are there", || async {
        transfer(&known, "t", &lite, &post, 1, 5)
            .submit()
            .await
            .ok()
    })
    .await;
    committed(Ok(outcome));
    assert_eq!(post.balance(1).await, INITIAL_BALANCE + 5);

    let stranger = Authority::new(&scratch, "stranger");
    let forged = stranger.issue(&scratch, "forged");
    let refused = [
        ("without a certificate", address.clone(), trusted.clone()),
        (
            "with another authority's certificate",
            address.clone(),
            trusted
                .clone()
                .identity(read(&forged.certificate), read(&forged.key)),
        ),
        (
            "who doesn't trust the coordinator",
            address.clone(),
            Tls::new()
                .authority(read(&stranger.file))
                .identity(read(&member.certificate), read(&member.key)),
        ),
    ];
    for (who, address, tls) in refused {
        let outcome = transfer(&client(&address, tls), who, &lite, &post, 1, 5)
            .submit()
            .await;
        is_not_committed(who, &outcome);
    }
    let plain = Client::builder(address.replace("https", "http"))
        .retry_for(std::time::Duration::ZERO)
        .build()
        .expect("a good address");
    let outcome = transfer(&plain, "plain", &lite, &post, 1, 5).submit().await;
    is_not_committed("without TLS", &outcome);
    assert_eq!(post.balance(1).await, INITIAL_BALANCE + 5);

    let operator = |options: &[&str]| {
        let mut command = Command::new(binaries::path("unanimity"));
        command
            .args(["participant", "list", "--coordinator", &address])
            .args(options)
            .output()
            .expect("it can be run")
    };
    let (authority_file, certificate, key) = (
        text(&authority.file),
        text(&member.certificate),
        text(&member.key),
    );
    let listed = operator(&[
        "--ca",
        authority_file,
        "--certificate",
        certificate,
        "--key",
        key,
    ]);
    assert!(listed.status.success(), "{listed:?}");
    assert!(String::from_utf8_lossy(&listed.stdout).contains("post"));
    let refused = operator(&["--ca", authority_file]);
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
}
