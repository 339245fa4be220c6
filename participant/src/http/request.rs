//! What is posted to the service: JSON, as `docs/http.md` shows it.

use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};

use crate::participant::{BranchId, Compensated, Fence, Step};

/// Names what is done, once however often it is sent. A branch's first operation, and a step, have the branch's own name; only the further
/// operations of a branch are counted, from 2.
pub(super) fn idempotency_key(branch: &BranchId, index: usize) -> String {
    match index {
        0 => branch.to_string(),
        index => format!("{branch}.{}", index + 1),
    }
}

#[derive(Serialize)]
struct BranchBody<'a> {
    transaction: &'a str,
    branch: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<&'a Map<String, Value>>,
}

/// For a prepare.
pub(super) fn prepare(branch: &BranchId, parameters: &Map<String, Value>) -> Vec<u8> {
    body(&BranchBody {
        transaction: &branch.transaction,
        branch: branch.number,
        parameters: Some(parameters),
    })
}

/// For a confirm, a cancel and a settle.
pub(super) fn decision(branch: &BranchId) -> Vec<u8> {
    body(&BranchBody {
        transaction: &branch.transaction,
        branch: branch.number,
        parameters: None,
    })
}

#[derive(Serialize)]
struct StepBody<'a> {
    transaction: &'a str,
    branch: u32,
    step: &'a str,
    attempt: u32,
    parameters: &'a Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compensates: Option<CompensatesBody<'a>>,
    fences: Vec<FenceBody<'a>>,
}

#[derive(Serialize)]
struct CompensatesBody<'a> {
    branch: u32,
    unsettled: bool,
    /// As the service gave it, to the letter: its numbers may be larger than ours.
    result: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct FenceBody<'a> {
    key: &'a str,
    token: u64,
}

/// For an execute; with `compensated`, for a compensate.
pub(super) fn step(
    step: &Step,
    parameters: &Map<String, Value>,
    compensated: Option<&Compensated>,
) -> Vec<u8> {
    body(&StepBody {
        transaction: &step.branch.transaction,
        branch: step.branch.number,
        step: &step.name,
        attempt: step.attempt,
        parameters,
        compensates: compensated.map(|of| CompensatesBody {
            branch: of.branch.number,
            unsettled: of.unsettled,
            result: serde_json::from_str(&of.result).ok(),
        }),
        fences: step.fences.iter().map(fence).collect(),
    })
}

fn fence(fence: &Fence) -> FenceBody<'_> {
    FenceBody {
        key: &fence.key,
        token: fence.token,
    }
}

fn body(of: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(of).expect("keys are texts, and no part of a body fails to be written")
}
