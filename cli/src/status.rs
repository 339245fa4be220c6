//! `unanimity status`: the coordinator itself.

use serde::Serialize;
use unanimity_proto::v1;

use crate::{
    connection::Connection,
    exit::{Effect, Failure},
    output::{Format, Show, pairs, print},
};

pub(crate) async fn run(connection: Connection, format: Format) -> Result<(), Failure> {
    let request = connection.request(v1::GetCoordinatorRequest {});
    let mut service = connection.admin.clone();
    let response = connection
        .answer(Effect::Reads, service.get_coordinator(request))
        .await?;
    let coordinator = Coordinator {
        log_id: response.log_id,
        epoch: response.epoch,
        version: response.version,
        active_transactions: response.active_transactions,
        durable_sequence: response.durable_sequence,
    };
    print(format, &coordinator)
}

#[derive(Debug, Serialize)]
struct Coordinator {
    log_id: String,
    epoch: u64,
    version: String,
    active_transactions: u64,
    durable_sequence: u64,
}

impl Show for Coordinator {
    fn text(&self) -> String {
        pairs([
            ("log id", self.log_id.clone()),
            ("epoch", self.epoch.to_string()),
            ("version", self.version.clone()),
            ("active transactions", self.active_transactions.to_string()),
            ("durable sequence", self.durable_sequence.to_string()),
        ])
    }
}
