//! A service whose own SQL takes part in a transaction that reached it with a request.
//!
//! `POST /orders` reads the transaction's id from the header, joins the transaction, does its INSERT, and finishes. Whether the order comes to be
//! is decided when the caller commits: together with whatever else the transaction changes, in other databases and services, or not at all.

mod orders;

use std::time::Duration;

use anyhow::Context;
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use clap::Parser;
use serde::Serialize;
use tracing_subscriber::EnvFilter;
use unanimity_participant::{
    enlist::{EnlistError, Service, ServiceOptions, TransactionContext},
    operation::Catalog,
    resource::ResourceOptions,
};

use orders::Order;

/// An orders service that takes part in its callers' transactions.
#[derive(Parser)]
struct Arguments {
    /// Where the coordinator listens.
    #[arg(
        long,
        env = "UNANIMITY_COORDINATOR",
        default_value = "http://127.0.0.1:7420"
    )]
    coordinator: String,
    /// The service's name as a participant.
    #[arg(long, env = "UNANIMITY_PARTICIPANT", default_value = "orders")]
    name: String,
    /// The service's database: postgres://…, mysql://…, or sqlite:orders.db.
    #[arg(long, env = "UNANIMITY_DATABASE", hide_env_values = true)]
    database: String,
    /// Where to listen for requests.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).init();
    let arguments = Arguments::parse();
    orders::create_table(&arguments.database)
        .await
        .context("the table could not be created")?;

    let service = Service::connect(ServiceOptions::new(
        arguments.coordinator,
        ResourceOptions {
            url: arguments.database,
            participant: arguments.name,
            connections: 16,
            catalog: Catalog::default(),
            marker_retention: Duration::from_secs(7 * 24 * 60 * 60),
        },
    ))
    .await?;

    let routes = Router::new()
        .route("/orders", post(place_order))
        .with_state(service.clone());
    let listener = tokio::net::TcpListener::bind(&arguments.listen)
        .await
        .context(arguments.listen)?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    axum::serve(listener, routes)
        .with_graceful_shutdown(interrupted())
        .await?;
    service.stop().await;
    Ok(())
}

async fn interrupted() {
    // Where signals can't be listened for, the service can only be killed, which is safe.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[derive(Serialize)]
struct Placed {
    id: String,
}

/// Any way out but the last drops the branch, and with it everything that was done here: the transaction can then only abort. That goes for a
/// caller who hangs up, too.
async fn place_order(
    State(service): State<Service>,
    headers: HeaderMap,
    Json(order): Json<Order>,
) -> Result<Json<Placed>, Failure> {
    if order.quantity <= 0 {
        return Err(Failure::Nonsense("an order needs a quantity above 0"));
    }
    let context = TransactionContext::from_headers(&headers)?.ok_or(Failure::Nonsense(
        "orders are placed within a transaction only: send its id as unanimity-transaction",
    ))?;

    let mut branch = service.enlist(&context.transaction).await?;
    // One branch, one order: its name is as good a key as any.
    let id = branch.id().to_string();
    orders::insert(branch.connection(), &id, &order).await?;
    branch.finish()?;

    Ok(Json(Placed { id }))
}

enum Failure {
    Nonsense(&'static str),
    Enlist(EnlistError),
    Database(sqlx::Error),
}

impl From<EnlistError> for Failure {
    fn from(error: EnlistError) -> Self {
        Self::Enlist(error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// The codes say what the caller may do: 400 mend the request, 409 abort and start anew, 503 the same a little later.
impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Nonsense(problem) => (StatusCode::BAD_REQUEST, problem.to_owned()),
            Self::Enlist(error) => {
                let code = match &error {
                    EnlistError::Malformed(_) => StatusCode::BAD_REQUEST,
                    EnlistError::Refused(_) | EnlistError::Branch(_) => StatusCode::CONFLICT,
                    EnlistError::TimedOut | EnlistError::SessionLost | EnlistError::Stopped => {
                        StatusCode::SERVICE_UNAVAILABLE
                    }
                };
                (code, error.to_string())
            }
            Self::Database(error) => {
                tracing::warn!(%error, "an order could not be written; its transaction will abort");
                (
                    StatusCode::CONFLICT,
                    "the order could not be written".to_owned(),
                )
            }
        }
        .into_response()
    }
}
