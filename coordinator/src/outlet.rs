//! The way from the driver to one participant's stream, which ends with a status.

use std::sync::{Arc, OnceLock};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::warn;
use unanimity_engine::{Downward, Seq};

use crate::error::Refused;

/// Batches that may wait for a participant that does not read.
const BATCHES: usize = 1_024;

/// What goes to a participant at once.
#[derive(Debug)]
pub(crate) struct Batch {
    /// In order.
    pub(crate) messages: Vec<Downward>,
    /// The last record that is on disk.
    pub(crate) durable: Seq,
}

/// The driver's end.
#[derive(Clone, Debug)]
pub(crate) struct Outlet {
    batches: mpsc::Sender<Batch>,
    end: End,
}

/// How and when a session ends; the first word counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct End {
    token: CancellationToken,
    why: Arc<OnceLock<Refused>>,
}

impl End {
    /// Ends the session.
    pub(crate) fn close(&self, why: Refused) {
        // A session that has ended keeps its first reason.
        let _ = self.why.set(why);
        self.token.cancel();
    }

    /// Waits for it.
    pub(crate) async fn reached(&self) {
        self.token.cancelled().await;
    }
}

impl Outlet {
    /// Hands over a batch. A peer that lets too many lie is cut off: it would be told decisions that are long settled.
    pub(crate) fn send(&self, batch: Batch) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.batches.try_send(batch) {
            warn!(
                limit = BATCHES,
                "a participant does not read its session, which is closed"
            );
            self.end.close(Refused::SessionStalled(BATCHES));
        }
    }

    /// Ends the session.
    pub(crate) fn close(&self, why: Refused) {
        self.end.close(why);
    }
}

/// Makes an outlet, and the stream of batches that comes out of it until the session's end.
pub(crate) fn outlet(
    end: End,
) -> (
    Outlet,
    impl Stream<Item = Result<Batch, Status>> + Send + 'static,
) {
    let (batches, receiver) = mpsc::channel(BATCHES);
    let ended = end.clone();
    let last = stream::once(async move { ended.why.get().cloned() })
        .filter_map(|why| std::future::ready(why.map(|why| Err(Status::from(why)))));
    let stream = ReceiverStream::new(receiver)
        .map(Ok)
        .take_until(end.token.clone().cancelled_owned())
        .chain(last);
    (Outlet { batches, end }, stream)
}
