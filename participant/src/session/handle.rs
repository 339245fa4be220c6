//! What a service holds of its session: the way to join a transaction.
//!
//! A join that was sent and not answered is never sent again: the coordinator may have counted a branch already, and will find at prepare time
//! that nobody knows it, which aborts the transaction. So the caller learns that it must start anew.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::outbox::Outbox;
use crate::{enlist::EnlistError, participant::BranchId, wire};

type Answer = Result<BranchId, String>;

/// Joins transactions over a running session; cheap to clone. It outlives reconnects.
#[derive(Clone, Debug)]
pub struct SessionHandle {
    state: watch::Receiver<State>,
    correlations: Arc<AtomicU64>,
}

/// The session's end: says which connection is open.
#[derive(Debug)]
pub(crate) struct Links(watch::Sender<State>);

#[derive(Clone, Debug)]
enum State {
    /// No connection now.
    Away,
    Open(Arc<Link>),
    /// No connection ever again.
    Stopped,
}

/// One connection's enlists; closed for good when the connection is lost.
#[derive(Debug)]
pub(crate) struct Link(Mutex<Option<Open>>);

#[derive(Debug)]
struct Open {
    outbox: Outbox,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
}

/// Opens both ends.
pub(crate) fn channel() -> (Links, SessionHandle) {
    let (sender, receiver) = watch::channel(State::Away);
    (
        Links(sender),
        SessionHandle {
            state: receiver,
            correlations: Arc::default(),
        },
    )
}

impl SessionHandle {
    /// Joins `transaction` and says which branch is the caller's. Waits for a connection first, if there is none; all in all no longer than
    /// `timeout`.
    pub async fn enlist(
        &self,
        transaction: &str,
        timeout: Duration,
    ) -> Result<BranchId, EnlistError> {
        if !wire::is_transaction_id(transaction) {
            return Err(EnlistError::Malformed(transaction.into()));
        }
        let correlation = self.correlations.fetch_add(1, Ordering::Relaxed) + 1;
        tokio::time::timeout(timeout, self.join(correlation, transaction))
            .await
            .unwrap_or(Err(EnlistError::TimedOut))
    }

    /// Waits until a connection is open.
    pub async fn connected(&self) -> Result<(), EnlistError> {
        self.link().await.map(drop)
    }

    async fn join(&self, correlation: u64, transaction: &str) -> Result<BranchId, EnlistError> {
        let link = self.link().await?;
        let answer = link
            .ask(correlation, transaction)
            .ok_or(EnlistError::SessionLost)?;
        let _forget = Forget {
            link: &link,
            correlation,
        };
        match answer.await {
            Ok(Ok(branch)) if branch.transaction == transaction => Ok(branch),
            Ok(Ok(branch)) => Err(EnlistError::Refused(format!(
                "the coordinator gave a branch of another transaction, {branch}"
            ))),
            Ok(Err(refusal)) => Err(EnlistError::Refused(refusal)),
            Err(_) => Err(EnlistError::SessionLost),
        }
    }

    async fn link(&self) -> Result<Arc<Link>, EnlistError> {
        let mut state = self.state.clone();
        // An error means that the session is gone without having been stopped: its future was dropped.
        match state
            .wait_for(|state| !matches!(state, State::Away))
            .await
            .as_deref()
        {
            Ok(State::Open(link)) => Ok(Arc::clone(link)),
            Ok(State::Away | State::Stopped) | Err(_) => Err(EnlistError::Stopped),
        }
    }
}

impl Links {
    /// A connection is open.
    pub(crate) fn open(&self, outbox: Outbox) -> Arc<Link> {
        let link = Arc::new(Link(Mutex::new(Some(Open {
            outbox,
            waiting: HashMap::new(),
        }))));
        self.0.send_replace(State::Open(Arc::clone(&link)));
        link
    }

    /// The connection is lost, or is about to be closed: everybody who waits learns it.
    pub(crate) fn close(&self, link: &Link) {
        self.0.send_replace(State::Away);
        link.0.lock().take();
    }

    /// There will be no connection again.
    pub(crate) fn stop(&self) {
        self.0.send_replace(State::Stopped);
    }
}

impl Link {
    /// Whoever waits for this answer. One that nobody waits for came too late, and its branch will be refused at prepare; or it came twice.
    pub(crate) fn waiting(&self, correlation: u64) -> Option<oneshot::Sender<Answer>> {
        let mut link = self.0.lock();
        link.as_mut()?.waiting.remove(&correlation)
    }

    fn ask(&self, correlation: u64, transaction: &str) -> Option<oneshot::Receiver<Answer>> {
        let mut link = self.0.lock();
        let open = link.as_mut()?;
        let (sender, receiver) = oneshot::channel();
        open.waiting.insert(correlation, sender);
        open.outbox
            .send(wire::enlist(correlation, transaction))
            .then_some(receiver)
    }
}

/// Gives the place up when the caller stops waiting, however it does so.
struct Forget<'a> {
    link: &'a Link,
    correlation: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(open) = self.link.0.lock().as_mut() {
            open.waiting.remove(&self.correlation);
        }
    }
}
