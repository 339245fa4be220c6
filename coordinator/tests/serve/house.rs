//! A coordinator in this process, on a log that outlives it.

use std::{net::SocketAddr, time::Duration};

use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use unanimity_coordinator::{Config, serve};
use unanimity_proto::v1::{
    self, admin_service_client::AdminServiceClient,
    transaction_service_client::TransactionServiceClient,
};

/// Nothing in these tests takes so long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A coordinator and its clients.
pub(crate) struct House {
    pub(crate) address: SocketAddr,
    pub(crate) channel: Channel,
    pub(crate) transactions: TransactionServiceClient<Channel>,
    pub(crate) admin: AdminServiceClient<Channel>,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

pub(crate) fn config(directory: &TempDir) -> Config {
    let mut config = Config::new(directory.path());
    config.listen = "127.0.0.1:0".parse().expect("an address");
    config.segment_bytes = 1 << 20;
    config.drain_timeout = Duration::from_millis(300);
    config
}

impl House {
    pub(crate) async fn open(directory: &TempDir) -> Self {
        Self::open_with(config(directory)).await
    }

    pub(crate) async fn open_with(config: Config) -> Self {
        let shutdown = CancellationToken::new();
        let (ready, told) = oneshot::channel();
        let task = tokio::spawn(serve(config, shutdown.clone(), Some(ready)));
        let address = timeout(PATIENCE, told)
            .await
            .expect("in time")
            .expect("serving");
        House {
            shutdown,
            task,
            ..House::visit(address).await
        }
    }

    /// One that runs elsewhere; closing it does nothing.
    pub(crate) async fn visit(address: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{address}"))
            .expect("a URI")
            .connect()
            .await
            .expect("connected");
        House {
            address,
            transactions: TransactionServiceClient::new(channel.clone()),
            admin: AdminServiceClient::new(channel.clone()),
            channel,
            shutdown: CancellationToken::new(),
            task: tokio::spawn(async { Ok(()) }),
        }
    }

    /// Asks it to stop, and goes on.
    pub(crate) fn ask_to_stop(&self) {
        self.shutdown.cancel();
    }

    pub(crate) async fn close(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task)
            .await
            .expect("in time")
            .expect("no panic")
            .expect("no error");
    }

    pub(crate) async fn submit(
        &mut self,
        request: v1::SubmitTransactionRequest,
    ) -> Result<v1::Transaction, tonic::Status> {
        let answer = timeout(PATIENCE, self.transactions.submit_transaction(request))
            .await
            .expect("in time")?;
        Ok(answer.into_inner().transaction.expect("a transaction"))
    }

    /// Waits until a transaction has come so far.
    pub(crate) async fn reaches(&mut self, id: &str, state: v1::TransactionState) {
        let reached = async {
            while self.get(id).await.expect("known").state() != state {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, reached).await.expect("in time");
    }

    pub(crate) async fn get(&mut self, id: &str) -> Result<v1::Transaction, tonic::Status> {
        let request = v1::GetTransactionRequest {
            transaction_id: id.into(),
        };
        let answer = timeout(PATIENCE, self.transactions.get_transaction(request))
            .await
            .expect("in time")?;
        Ok(answer.into_inner().transaction.expect("a transaction"))
    }
}

/// The named operation `debit` with an amount.
pub(crate) fn debit(amount: i64) -> v1::Operation {
    let value = v1::Value {
        kind: Some(v1::value::Kind::Integer(amount)),
    };
    v1::Operation {
        statement: Some(v1::operation::Statement::Name("debit".into())),
        parameters: [("amount".to_owned(), value)].into(),
        arguments: Vec::new(),
    }
}

/// A submit of one `debit` at each participant.
pub(crate) fn transfer(
    request_id: &str,
    participants: &[&str],
    amount: i64,
) -> v1::SubmitTransactionRequest {
    v1::SubmitTransactionRequest {
        request_id: request_id.into(),
        branches: participants
            .iter()
            .map(|name| v1::BranchRequest {
                participant: (*name).into(),
                operations: vec![debit(amount)],
            })
            .collect(),
        ..v1::SubmitTransactionRequest::default()
    }
}
