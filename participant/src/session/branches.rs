//! Runs what the coordinator asks of branches: branches beside one another, the messages of one branch strictly one after the other.
//!
//! The queues outlive the connection that a message came by, so that a commit from a new connection waits for the prepare of a lost one. No
//! work is ever aborted: a cancelled future does not cancel what it sent to a database. Only the answer of a lost connection is dropped.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use parking_lot::Mutex;
use prost::Message;
use tokio_util::task::TaskTracker;
use unanimity_proto::v1;

use super::outbox::{self, Outbox};
use crate::{
    participant::{BranchId, Participant, Refusal},
    wire::{self, Work},
};

/// The largest result of an operation that is sent: a gRPC peer takes 4 MiB, and the rest of the message needs a little.
const RESULT_BYTES: usize = 7 << 19;

/// One message, and where its answer goes.
struct Job {
    work: Work,
    outbox: Outbox,
    arrived: Instant,
}

/// A task runs for each branch that has an entry, and takes its next job from there.
type Queues = HashMap<BranchId, VecDeque<Job>>;

/// The branches that have work.
pub(crate) struct Branches<P> {
    participant: Arc<P>,
    queues: Mutex<Queues>,
    /// Those that do work and were not asked for their vote yet.
    open: Mutex<HashSet<BranchId>>,
    /// The last operation of each of these that was begun: what comes twice is done once.
    executed: Mutex<HashMap<BranchId, u64>>,
    tasks: TaskTracker,
}

impl<P: Participant> Branches<P> {
    pub(crate) fn new(participant: Arc<P>) -> Arc<Self> {
        Arc::new(Self {
            participant,
            queues: Mutex::default(),
            open: Mutex::default(),
            executed: Mutex::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// Takes work on; it starts at once, or when all earlier work on the branch has ended.
    pub(crate) fn submit(self: &Arc<Self>, branch: BranchId, work: Work, outbox: Outbox) {
        match work {
            Work::Execute { .. } => self.opened(branch.clone()),
            Work::Prepare(_)
            | Work::Commit { .. }
            | Work::Abort { .. }
            | Work::Prove
            | Work::RunStep(_)
            | Work::SettleStep { .. } => self.closed(&branch),
            Work::Abandon => {}
        }
        let job = Job {
            work,
            outbox,
            arrived: Instant::now(),
        };
        match self.queues.lock().entry(branch) {
            Entry::Occupied(mut busy) => enqueue(busy.get_mut(), job),
            Entry::Vacant(idle) => {
                let branch = idle.key().clone();
                idle.insert(VecDeque::new());
                self.tasks.spawn(Arc::clone(self).work_off(branch, job));
            }
        }
    }

    /// A branch does work from now on, by this session's leave.
    pub(crate) fn opened(&self, branch: BranchId) {
        self.open.lock().insert(branch);
    }

    fn closed(&self, branch: &BranchId) {
        self.open.lock().remove(branch);
    }

    /// It was rolled back: whatever comes late is refused by the participant itself.
    fn over(&self, branch: &BranchId) {
        self.closed(branch);
        self.executed.lock().remove(branch);
    }

    /// Rolls back what is open and was not asked for its vote: with the session its transactions are lost, and a coordinator that restarted
    /// does not know of them, so nobody else would free their locks. One that was asked is left alone; its vote may have arrived.
    pub(crate) fn abandon_open(self: &Arc<Self>) {
        let open: Vec<BranchId> = self.open.lock().iter().cloned().collect();
        let (nobody, _) = outbox::channel();
        for branch in open {
            self.submit(branch, Work::Abandon, nobody.clone());
        }
    }

    /// Reports every prepared branch; says nothing where the resource can't be reached, since an empty report would be a lie.
    pub(crate) fn report_in_doubt(self: &Arc<Self>, outbox: Outbox) {
        let branches = Arc::clone(self);
        self.tasks.spawn(async move {
            match branches.participant.in_doubt().await {
                Ok(found) => _ = outbox.send(wire::in_doubt_report(found)),
                Err(unavailable) => tracing::debug!(%unavailable, "no report of in-doubt branches"),
            }
        });
    }

    /// Waits until all work taken on has ended; false where that takes longer than `limit`. What is left runs on.
    pub(crate) async fn settle(&self, limit: Duration) -> bool {
        self.tasks.close();
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }

    async fn work_off(self: Arc<Self>, branch: BranchId, first: Job) {
        let mut next = Some(first);
        while let Some(job) = next {
            self.run(&branch, job).await;
            next = self.next(&branch);
        }
    }

    /// Takes the next job; gives the branch up where there is none, under the same lock.
    fn next(&self, branch: &BranchId) -> Option<Job> {
        let mut queues = self.queues.lock();
        let job = queues.get_mut(branch).and_then(VecDeque::pop_front);
        let Some(mut job) = job else {
            queues.remove(branch);
            return None;
        };
        job.work.has_waited(job.arrived.elapsed());
        Some(job)
    }

    /// A panic in the participant's code gets no answer, because nothing true can be said; the coordinator's clock settles it.
    async fn run(&self, branch: &BranchId, job: Job) {
        match AssertUnwindSafe(self.answer(branch, job.work))
            .catch_unwind()
            .await
        {
            Ok(Some(answer)) => {
                failpoint!("participant.answer.before");
                _ = job.outbox.send(answer);
            }
            Ok(None) => {}
            Err(_) => {
                tracing::error!(%branch, "the participant's code panicked; the branch is left to the coordinator")
            }
        }
    }

    /// Does the work, and gives its answer; `None` where nobody waits for one.
    async fn answer(&self, branch: &BranchId, work: Work) -> Option<v1::ParticipantMessage> {
        let participant = &self.participant;
        failpoint!("participant.work.received");
        if !matches!(work, Work::Execute { .. }) {
            self.executed.lock().remove(branch);
        }
        Some(match work {
            Work::Prepare(prepare) => {
                wire::vote(Some(wire::key(branch)), participant.prepare(prepare).await)
            }
            Work::Commit { proof } => {
                wire::completion(branch, participant.commit(branch, &proof).await)
            }
            Work::Abort { proof } => {
                wire::completion(branch, participant.abort(branch, &proof).await)
            }
            Work::Prove => wire::proof(branch, participant.prove(branch).await),
            Work::Execute {
                sequence,
                open,
                operation,
                timeout,
            } => {
                if !self.is_next(branch, sequence) {
                    return None;
                }
                let result = self.execute(branch, open, *operation, timeout).await;
                wire::execute_result(Some(wire::key(branch)), sequence, result)
            }
            Work::RunStep(run) => {
                let attempt = run.step.attempt;
                let outcome = match run.compensated {
                    None => participant.execute(run.step).await,
                    Some(compensated) => participant.compensate(run.step, compensated).await,
                };
                wire::step_result(Some(wire::key(branch)), attempt, outcome)
            }
            Work::SettleStep { age, attempt } => {
                let outcome = participant.settle(branch, age).await;
                wire::step_result(Some(wire::key(branch)), attempt, outcome)
            }
            Work::Abandon => {
                // An operation that came late had opened nothing: the branch may be prepared.
                if self.open.lock().remove(branch) {
                    participant.abort(branch, "").await;
                }
                return None;
            }
        })
    }

    /// Whether an operation has not been begun before. One that has is in need of no second answer: the first goes by the same session, and
    /// with that the branch would be lost.
    fn is_next(&self, branch: &BranchId, sequence: u64) -> bool {
        let mut executed = self.executed.lock();
        let last = executed.entry(branch.clone()).or_default();
        let is_next = sequence > *last;
        *last = sequence.max(*last);
        is_next
    }

    /// A result that the session can't carry is a refusal, and a refusal means that the branch was rolled back.
    async fn execute(
        &self,
        branch: &BranchId,
        open: bool,
        operation: v1::Operation,
        timeout: Duration,
    ) -> Result<v1::OperationResult, Refusal> {
        let result = self
            .participant
            .operate(branch, open, operation, timeout)
            .await
            .inspect_err(|_| self.over(branch))?;
        let bytes = result.encoded_len();
        if bytes <= RESULT_BYTES {
            return Ok(result);
        }
        self.participant.abort(branch, "").await;
        self.over(branch);
        let message = format!(
            "the result has {bytes} bytes, more than the {RESULT_BYTES} that can be sent; ask for fewer rows"
        );
        Err(Refusal {
            code: v1::AbortCode::InvalidOperation,
            message,
        })
    }
}

/// What comes again while the same still waits takes its place, so that a database that hangs does not fill the memory.
fn enqueue(waiting: &mut VecDeque<Job>, job: Job) {
    match waiting.back_mut() {
        Some(last) if repeats(&last.work, &job.work) => *last = job,
        _ => waiting.push_back(job),
    }
}

fn repeats(earlier: &Work, later: &Work) -> bool {
    match (earlier, later) {
        (Work::Commit { proof: one }, Work::Commit { proof: other }) => one == other,
        (Work::Abort { proof: one }, Work::Abort { proof: other }) => one == other,
        // A step's key stands for the same work for ever; the later attempt is the one that is waited for.
        (Work::Prove, Work::Prove)
        | (Work::RunStep(_), Work::RunStep(_))
        | (Work::SettleStep { .. }, Work::SettleStep { .. }) => true,
        _ => false,
    }
}
