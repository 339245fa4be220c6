//! A saga that is on its way.

use std::time::Instant;

use super::outcome::{Question, SagaOutcome, UnknownSaga};
use crate::{Client, Error, Snapshot};

/// What a start came to.
#[derive(Clone, Debug)]
#[must_use = "it may have ended already, or its beginning be unknown"]
pub enum Started {
    /// It has begun, and goes on whatever happens.
    Running(RunningSaga),
    /// It has ended already, or (as [`SagaOutcome::Unknown`]) nobody can say whether it began.
    Ended(SagaOutcome),
}

/// A saga that has begun. Dropping this changes nothing: the coordinator goes on.
#[derive(Clone, Debug)]
pub struct RunningSaga {
    client: Client,
    id: String,
}

impl RunningSaga {
    /// Its id, by which any process can find it again: see [`Client::running_saga`].
    pub fn id(&self) -> &str {
        &self.id
    }

    /// As it stands, with its steps.
    ///
    /// # Errors
    /// As for [`Client::lookup`].
    pub async fn look(&self) -> Result<Snapshot, Error> {
        self.client.lookup(self.id.clone()).await
    }

    /// Waits for its end, and looks about once a second. Gives [`SagaOutcome::Unknown`] at the deadline.
    pub async fn wait(&self, deadline: Instant) -> SagaOutcome {
        UnknownSaga::asked(self.client.clone(), Question::Transaction(self.id.clone()))
            .settle(deadline)
            .await
    }

    /// Turns it back, which it goes on to do after the answer. Asked again, it gives the same answer.
    ///
    /// # Errors
    /// [`Error::Refused`] where it is past its pivot; and as for [`Client::abort`].
    pub async fn cancel(&self, reason: impl Into<String>) -> Result<Snapshot, Error> {
        self.client.abort(self.id.clone(), reason).await
    }
}

impl Client {
    /// A saga that was begun before, perhaps by another process. Nothing is asked yet.
    pub fn running_saga(&self, transaction_id: impl Into<String>) -> RunningSaga {
        RunningSaga {
            client: self.clone(),
            id: transaction_id.into(),
        }
    }
}
