//! A participant that writes down what it is asked, and waits where a test tells it to.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use unanimity_participant::participant::{
    BranchId, Compensated, InDoubt, Participant, Prepare, Refusal, STEP_RESULT_BYTES, Settled,
    Step, StepOutcome, Unavailable, Vote,
};
use unanimity_proto::v1;

pub(crate) struct Work {
    events: Mutex<Vec<String>>,
    begun: mpsc::UnboundedSender<String>,
    gates: HashMap<String, Semaphore>,
    pub(crate) in_doubt: Mutex<Result<Vec<InDoubt>, Unavailable>>,
}

impl Work {
    /// Work on the transactions named in `gated` waits for [`Work::let_through`]. The receiver tells of each piece of work that begins.
    pub(crate) fn gated(gated: &[&str]) -> (Arc<Self>, mpsc::UnboundedReceiver<String>) {
        let (begun, receiver) = mpsc::unbounded_channel();
        let gates = gated
            .iter()
            .map(|transaction| ((*transaction).to_owned(), Semaphore::new(0)))
            .collect();
        (
            Arc::new(Self {
                events: Mutex::default(),
                begun,
                gates,
                in_doubt: Mutex::new(Ok(Vec::new())),
            }),
            receiver,
        )
    }

    pub(crate) fn new() -> Arc<Self> {
        Self::gated(&[]).0
    }

    /// Lets one piece of work go on.
    pub(crate) fn let_through(&self, transaction: &str) {
        self.gates[transaction].add_permits(1);
    }

    pub(crate) fn events(&self) -> Vec<String> {
        self.events.lock().clone()
    }

    async fn note(&self, what: &str, branch: &BranchId) {
        self.events
            .lock()
            .push(format!("{what} {}", branch.transaction));
        _ = self.begun.send(what.to_owned());
        if let Some(gate) = self.gates.get(&branch.transaction) {
            gate.acquire().await.expect("never closed").forget();
            self.events
                .lock()
                .push(format!("end of {what} {}", branch.transaction));
        }
    }
}

impl Participant for Work {
    async fn prepare(&self, prepare: Prepare) -> Vote {
        self.note("prepare", &prepare.branch).await;
        assert!(!prepare.branch.transaction.starts_with("panic"), "told to");
        Vote::Yes {
            proof: "742".into(),
        }
    }

    async fn commit(&self, branch: &BranchId, _proof: &str) -> Settled {
        self.note("commit", branch).await;
        Settled::Committed
    }

    async fn abort(&self, branch: &BranchId, _proof: &str) -> Settled {
        self.note("abort", branch).await;
        Settled::Aborted
    }

    async fn in_doubt(&self) -> Result<Vec<InDoubt>, Unavailable> {
        self.in_doubt.lock().clone()
    }

    async fn operate(
        &self,
        branch: &BranchId,
        _open: bool,
        _operation: v1::Operation,
        _timeout: Duration,
    ) -> Result<v1::OperationResult, Refusal> {
        self.note("execute", branch).await;
        if branch.transaction == "spent" {
            return Err(Refusal {
                code: v1::AbortCode::BranchLost,
                message: "it takes no more work".into(),
            });
        }
        let bytes = if branch.transaction.starts_with("large") {
            4 << 20
        } else {
            3
        };
        let value = v1::Value {
            kind: Some(v1::value::Kind::Text("x".repeat(bytes))),
        };
        Ok(v1::OperationResult {
            rows: vec![v1::Row {
                values: vec![value],
            }],
            ..v1::OperationResult::default()
        })
    }

    async fn prove(&self, branch: &BranchId) -> Settled {
        self.note("prove", branch).await;
        Settled::Committed
    }

    async fn execute(&self, step: Step) -> StepOutcome {
        self.note("step", &step.branch).await;
        match step.branch.transaction.as_str() {
            "panic" => panic!("told to"),
            "large" => StepOutcome::Done {
                result: format!("\"{}\"", "x".repeat(STEP_RESULT_BYTES)),
            },
            "crooked" => StepOutcome::Done {
                result: "{\"id\": ".into(),
            },
            "refused" => StepOutcome::Refused(Refusal {
                code: v1::AbortCode::Refused,
                message: "sold out".into(),
            }),
            _ => StepOutcome::Done {
                result: "{\"id\": 7}".into(),
            },
        }
    }

    async fn compensate(&self, step: Step, compensated: Compensated) -> StepOutcome {
        assert!(compensated.unsettled && compensated.result == "{}");
        let what = format!(
            "compensation {} of {} in",
            step.branch.number, compensated.branch.number
        );
        self.note(&what, &step.branch).await;
        StepOutcome::Done {
            result: String::new(),
        }
    }

    async fn settle(&self, branch: &BranchId, _age: Duration) -> StepOutcome {
        self.note("settle", branch).await;
        StepOutcome::Never
    }
}
