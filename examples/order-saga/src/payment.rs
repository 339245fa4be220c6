//! The payment: a service with nothing of ours in it, behind plain HTTP. An agent, `unanimity-participant http`, stands beside it.
//!
//! What it must do is in `docs/http.md`: `/authorise` holds the money, `/capture` keeps it, `/void` gives it back, each once for each
//! `Idempotency-Key`, and each written down before it is answered. How it does that is in [`ledger`].

mod ledger;

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Result;
use example_harness::role::end_with_parent;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

use self::ledger::{Charge, Ledger, Refused};
pub(crate) use self::ledger::{PAYMENT_LOG, create, held, left};

/// The longest request.
const REQUEST_BYTES: usize = 1 << 16;

/// What the agent is told of the endpoints.
const OPERATIONS: &str = r#"
[operation.charge]
parameters = [
    { name = "order", type = "integer" },
    { name = "card", type = "integer" },
    { name = "cents", type = "integer" },
]
prepare = "/authorise"
confirm = "/capture"
cancel  = "/void"
"#;

/// The configuration of the agent.
pub(crate) fn agent(service: &str, journal: &str, coordinator: &str, capacity: u32) -> String {
    format!(
        "name        = \"payment\"\n\
         coordinator = {coordinator:?}\n\
         service     = \"http://{service}\"\n\
         journal     = {journal:?}\n\
         capacity    = {capacity}\n\
         {OPERATIONS}"
    )
}

/// The service's command line.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    database: PathBuf,
}

/// Serves until it is killed: it may be, at any moment.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    end_with_parent();
    let ledger = Arc::new(Ledger::open(&arguments.database).await?);
    let listener = TcpListener::bind(arguments.listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let ledger = Arc::clone(&ledger);
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(&ledger, request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = connection.await {
                eprintln!("a connection broke: {error}");
            }
        });
    }
}

/// What the agent posts; it says more, which is of no interest here.
#[derive(Deserialize)]
struct Body {
    parameters: Option<Charge>,
}

/// Any failure is a 500: nobody knows then what was done, so it is asked again.
async fn answer(
    ledger: &Ledger,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = serve(ledger, request).await.unwrap_or_else(|error| {
        eprintln!("a request failed: {error:#}");
        let message = error.to_string();
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            json!({ "message": message }),
        )
    });
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Ok(response)
}

async fn serve(
    ledger: &Ledger,
    request: Request<Incoming>,
) -> Result<(StatusCode, serde_json::Value)> {
    let say = |status, message: &str| Ok((status, json!({ "message": message })));
    if request.method() != Method::POST {
        return say(StatusCode::METHOD_NOT_ALLOWED, "use POST");
    }
    let path = request.uri().path().to_owned();
    let key = request.headers().get("idempotency-key");
    let Some(key) = key.and_then(|key| key.to_str().ok()).map(str::to_owned) else {
        return say(StatusCode::BAD_REQUEST, "there is no Idempotency-Key");
    };
    let body = Limited::new(request.into_body(), REQUEST_BYTES)
        .collect()
        .await;
    let body: Body = match body.map(|body| serde_json::from_slice(&body.to_bytes())) {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return say(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(error) => return say(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let done = match (path.as_str(), body.parameters) {
        ("/authorise", Some(charge)) => ledger.authorise(&key, &charge).await?,
        ("/authorise", None) => return say(StatusCode::BAD_REQUEST, "there are no parameters"),
        ("/capture", _) => ledger.capture(&key).await.map(Ok)?,
        ("/void", _) => ledger.void(&key).await.map(Ok)?,
        _ => return say(StatusCode::NOT_FOUND, "there is no such endpoint"),
    };
    match done {
        Ok(()) => Ok((StatusCode::OK, json!({}))),
        Err(Refused(reason)) => say(StatusCode::UNPROCESSABLE_ENTITY, reason),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::{
        database::Database,
        plan::{CARD_CENTS, Plan},
    };

    /// A service on a port of its own, in this process.
    async fn service(directory: &Path) -> (SocketAddr, Database) {
        let file = directory.join("payment.db");
        let database = Database::open(&format!("sqlite:{}", file.display()), 1).await;
        let database = database.unwrap();
        let plan = Plan {
            seed: 0,
            orders: 0,
            customers: 20,
        };
        create(&database, &plan).await.unwrap();
        let ledger = Ledger::open(&file).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = service_fn(|request| answer(&ledger, request));
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                connection.await.unwrap();
            }
        });
        (address, database)
    }

    /// The status that a request gets.
    async fn post(address: SocketAddr, path: &str, header: &str, body: &str) -> u16 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.contains("content-type: application/json"),
            "{answer}"
        );
        answer[9..12].parse().unwrap()
    }

    #[tokio::test]
    async fn the_endpoints_keep_the_contract() {
        let directory = tempfile::tempdir().unwrap();
        let (address, database) = service(directory.path()).await;
        let charge = |card: u32| {
            format!(
                r#"{{"transaction": "u1.t", "branch": 2, "parameters": {{"order": 7, "card": {card}, "cents": 250}}}}"#
            )
        };
        let plain = r#"{"transaction": "u1.t", "branch": 2}"#;
        let one = "Idempotency-Key: u1.t.2\r\n";
        let two = "Idempotency-Key: u1.u.2\r\n";
        let blocked = "Idempotency-Key: u1.v.2\r\n";
        let requests = [
            ("/authorise", "", charge(1), 400),
            ("/authorise", one, plain.to_owned(), 400),
            ("/authorise", one, "{".to_owned(), 400),
            ("/refund", one, plain.to_owned(), 404),
            ("/capture", one, plain.to_owned(), 500),
            ("/authorise", one, charge(1), 200),
            ("/authorise", one, charge(1), 200),
            ("/capture", one, plain.to_owned(), 200),
            ("/capture", one, plain.to_owned(), 200),
            ("/void", two, plain.to_owned(), 200),
            ("/authorise", two, charge(1), 422),
            ("/authorise", blocked, charge(20), 422),
            ("/void", blocked, plain.to_owned(), 200),
        ];
        for (path, header, body, status) in requests {
            assert_eq!(
                post(address, path, header, &body).await,
                status,
                "{path} {header}{body}"
            );
        }
        assert_eq!(left(&database).await.unwrap(), 20 * CARD_CENTS - 250);
        assert_eq!(held(&database).await.unwrap(), [""; 0]);
        let events = database.events(PAYMENT_LOG).await.unwrap();
        let events: Vec<_> = events.into_iter().map(|event| event.event).collect();
        assert_eq!(events, ["authorised", "captured"]);
    }

    #[tokio::test]
    async fn what_is_voided_is_given_back_once_and_never_captured() {
        let directory = tempfile::tempdir().unwrap();
        let (address, database) = service(directory.path()).await;
        let charge = r#"{"parameters": {"order": 7, "card": 1, "cents": 250}}"#;
        let key = "Idempotency-Key: u1.t.2\r\n";
        let expected = [
            ("/authorise", 200),
            ("/void", 200),
            ("/void", 200),
            ("/authorise", 422),
            ("/capture", 500),
        ];
        for (path, status) in expected {
            assert_eq!(post(address, path, key, charge).await, status, "{path}");
        }
        assert_eq!(left(&database).await.unwrap(), 20 * CARD_CENTS);
        assert_eq!(database.events(PAYMENT_LOG).await.unwrap().len(), 2);
    }
}
