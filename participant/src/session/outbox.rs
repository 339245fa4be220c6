//! The way up: what the branches answer becomes batches by itself.
//!
//! The transport asks for the next batch when it can take one, and gets all that is there: alone under light load, many under heavy load, with
//! no lingering. An answer for a session that is gone is dropped without a word; the coordinator asks again in the next one.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use unanimity_proto::v1::{ParticipantMessage, SessionRequest};

/// A batch has at most this many bytes, unless one answer alone has more: far below the 4 MiB that a gRPC peer takes.
const BATCH_BYTES: usize = 1 << 20;

/// Sends into one session; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Outbox(mpsc::UnboundedSender<ParticipantMessage>);

/// The batches of one session. Ends when the last [`Outbox`] is gone and all is sent.
#[derive(Debug)]
pub(crate) struct Batches {
    receiver: mpsc::UnboundedReceiver<ParticipantMessage>,
    /// Did not fit into the batch before.
    held: Option<ParticipantMessage>,
}

/// Opens both ends. There is no bound of its own: each message answers one of the coordinator's, who bounds what it has in flight.
pub(crate) fn channel() -> (Outbox, Batches) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (
        Outbox(sender),
        Batches {
            receiver,
            held: None,
        },
    )
}

impl Outbox {
    /// Queues a message; false where the session is gone.
    pub(crate) fn send(&self, message: ParticipantMessage) -> bool {
        self.0.send(message).is_ok()
    }
}

impl Stream for Batches {
    type Item = SessionRequest;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<SessionRequest>> {
        let first = match self.held.take() {
            Some(held) => held,
            None => match ready!(self.receiver.poll_recv(context)) {
                Some(first) => first,
                None => return Poll::Ready(None),
            },
        };
        let mut bytes = first.encoded_len();
        let mut messages = vec![first];
        while let Ok(next) = self.receiver.try_recv() {
            bytes += next.encoded_len();
            if bytes > BATCH_BYTES {
                self.held = Some(next);
                break;
            }
            messages.push(next);
        }
        Poll::Ready(Some(SessionRequest { messages }))
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;
    use unanimity_proto::v1::{Vote, participant_message::Kind};

    use super::*;

    fn vote(proof_bytes: usize) -> ParticipantMessage {
        ParticipantMessage {
            kind: Some(Kind::Vote(Vote {
                proof: "x".repeat(proof_bytes),
                ..Vote::default()
            })),
        }
    }

    #[tokio::test]
    async fn all_that_waits_goes_in_one_batch_and_the_end_comes_after_it() {
        let (outbox, mut batches) = channel();
        (0..100).for_each(|_| assert!(outbox.send(vote(1))));
        drop(outbox);
        assert_eq!(
            batches.next().await.map(|batch| batch.messages.len()),
            Some(100)
        );
        assert_eq!(batches.next().await, None);
    }

    #[tokio::test]
    async fn a_batch_is_closed_before_it_outgrows_the_peer() {
        let (outbox, mut batches) = channel();
        for bytes in [
            BATCH_BYTES / 3,
            BATCH_BYTES / 3,
            BATCH_BYTES / 2,
            3 * BATCH_BYTES,
            1,
        ] {
            assert!(outbox.send(vote(bytes)));
        }
        drop(outbox);
        let mut lengths = Vec::new();
        while let Some(batch) = batches.next().await {
            lengths.push(batch.messages.len());
        }
        assert_eq!(lengths, [2, 1, 1, 1]);
    }
}
