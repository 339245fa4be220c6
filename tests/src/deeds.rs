//! What a saga's steps did, as the databases themselves tell: a row for every action and every compensation, in a table that lets all twice.

use unanimity_client::{Operation, Step};

use crate::bank::Bank;

const TABLE: &str = "CREATE TABLE deed (saga VARCHAR(64) NOT NULL, step VARCHAR(16) NOT NULL, what BIGINT NOT NULL)";

const PARAMETERS: &str = r#"[{ name = "saga", type = "text" }, { name = "step", type = "text" }]"#;

impl Bank {
    /// With a table of deeds, and the operations `do`, `undo` and `refuse`.
    pub async fn with_deeds(self) -> Self {
        self.execute(TABLE).await;
        let insert = |what| format!("INSERT INTO deed (saga, step, what) VALUES ($1, $2, {what})");
        self.offering("do", &insert(1), PARAMETERS)
            .offering("undo", &insert(-1), PARAMETERS)
            .offering(
                "refuse",
                "UPDATE deed SET what = 1 WHERE saga = $1 AND step = $2 AND what = 7",
                &format!("{PARAMETERS}\nexpected_rows = 1"),
            )
    }

    /// How often a step was done here.
    pub async fn did(&self, saga: &str, step: &str) -> usize {
        self.deeds(saga, step, 1).await
    }

    /// How often it was undone.
    pub async fn undid(&self, saga: &str, step: &str) -> usize {
        self.deeds(saga, step, -1).await
    }

    async fn deeds(&self, saga: &str, step: &str, what: i64) -> usize {
        let query = format!(
            "SELECT what FROM deed WHERE saga = '{saga}' AND step = '{step}' AND what = {what}"
        );
        self.numbers(&query).await.len()
    }
}

/// An operation of a step.
pub fn operation(name: &str, saga: &str, step: &str) -> Operation {
    Operation::named(name).with("saga", saga).with("step", step)
}

/// Gives a step its work at a bank.
pub fn acts(step: Step, bank: &Bank, saga: &str, name: &str) -> Step {
    step.at(&bank.name).run(operation("do", saga, name))
}
