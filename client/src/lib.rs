//! What applications call to make a change everywhere or nowhere.
//!
//! ```no_run
//! use unanimity_client::{Client, Operation, Outcome};
//!
//! # async fn transfer() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("http://127.0.0.1:7420").await?;
//! let outcome = client
//!     .transaction()
//!     .branch("bank1", [Operation::named("debit").with("account", 7).with("amount", 10)])
//!     .branch("bank2", [Operation::named("credit").with("account", 9).with("amount", 10)])
//!     .submit()
//!     .await?;
//! match outcome {
//!     Outcome::Committed(receipt) => println!("{} is done", receipt.transaction_id),
//!     Outcome::Aborted(aborted) => println!("nothing happened: {aborted}"),
//!     Outcome::Heuristic(heuristic) => println!("a human must look: {heuristic}"),
//!     Outcome::Unknown(unknown) => println!("ask again with request id {:?}", unknown.request_id()),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Where databases can't hold a transaction open for each other, [`Client::saga`] runs steps that each commit at once, and undoes them where
//! the whole can't be done.
//!
//! Three things are kept apart, whatever the network does: an [`Outcome`] is what became of a transaction; an [`Error`] means that
//! nothing was changed and nothing will be; and where neither can be said, the outcome is [`Outcome::Unknown`], which the caller
//! has to handle. A lost reply is never reported as an abort.

mod age;
mod client;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod interactive;
mod operation;
mod outcome;
mod retry;
mod rows;
mod saga;
mod snapshot;
mod submit;
mod value;

pub use unanimity_proto::v1::{AbortCode, BranchState, StepKind, StepState, TransactionState};

pub use self::{
    client::{Builder, Client, Tls},
    error::{Error, Reason},
    interactive::{Begin, ExecuteError, TRANSACTION_HEADER, Transaction},
    operation::Operation,
    outcome::{Aborted, Heuristic, NotCommitted, Outcome, Receipt, Unknown},
    rows::{FromValue, Row, RowError, Rows},
    saga::{
        Compensated, NotCompleted, RunningSaga, SagaOutcome, SagaSubmission, Started, Step,
        UnknownSaga,
    },
    snapshot::{Branch, Listing, Page, SagaProgress, Snapshot, StepProgress},
    submit::Submission,
    value::Value,
};
