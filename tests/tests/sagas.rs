//! Sagas on real processes and databases: whole or wholly undone, whatever dies in between.
//!
//! `a`, then `b` and `c` side by side, then the pivot `d`, then `e`, which is retriable; over PostgreSQL, MariaDB and SQLite.

use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use unanimity_client::{AbortCode, Client, Error, SagaOutcome, SagaSubmission, Step};
use unanimity_proto::v1::{self, StepState, TransactionState};
use unanimity_tests::{
    bank::Bank,
    deeds::{acts, operation},
    patience::{becomes, eventually},
    system::{Agent, Coordinator, Scratch},
};

struct System {
    coordinator: Coordinator,
    agents: Vec<Agent>,
    house: House,
    _scratch: Scratch,
}

/// The databases, and what happens in them.
struct House {
    lite: Bank,
    post: Bank,
    maria: Bank,
}

/// What goes wrong besides the kill.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mishap {
    Nothing,
    Refusal(&'static str),
}

/// What dies, and when.
#[derive(Clone, Copy, Debug)]
enum Kill {
    /// When the step was sent, before its agent has seen it.
    CoordinatorBefore,
    /// As soon as the step's agent works again: before, while or after the step is done.
    CoordinatorAfter,
    /// The step's agent, with the step on its way to it.
    Agent,
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    Coordinator,
    /// By its place.
    Agent(usize),
}

/// Places of the agents.
const LITE: usize = 0;
const POST: usize = 1;
const MARIA: usize = 2;

async fn system() -> System {
    let scratch = Scratch::new();
    let coordinator = Coordinator::start(&scratch).await;
    let [lite, post, maria] = Bank::three(&scratch).await;
    let house = House {
        lite: lite.with_deeds().await,
        post: post.with_deeds().await,
        maria: maria.with_deeds().await,
    };
    let mut agents = Vec::new();
    for bank in [&house.lite, &house.post, &house.maria] {
        agents.push(Agent::start(&scratch, &coordinator, bank).await);
    }
    System {
        coordinator,
        agents,
        house,
        _scratch: scratch,
    }
}

impl House {
    /// Where each step is done.
    fn places(&self) -> [(&'static str, &Bank); 5] {
        let Self { lite, post, maria } = self;
        [
            ("a", post),
            ("b", maria),
            ("c", lite),
            ("d", post),
            ("e", maria),
        ]
    }

    fn saga(&self, client: &Client, id: &str, mishap: Mishap) -> SagaSubmission {
        let mut saga = client.saga().request_id(id).lock(id);
        for (name, bank) in self.places() {
            let step = match name {
                "d" => acts(Step::pivot(name), bank, id, name),
                "e" => acts(Step::retriable(name), bank, id, name),
                _ => acts(Step::new(name), bank, id, name)
                    .compensate(operation("undo", id, name))
                    .after((name != "a").then_some("a")),
            };
            let step = match mishap {
                Mishap::Refusal(at) if at == name => step.run(operation("refuse", id, name)),
                _ => step,
            };
            saga = saga.step(step.backoff(Duration::from_millis(20), Duration::from_millis(200)));
        }
        saga
    }

    /// How often each step was done, and undone.
    async fn deeds(&self, id: &str) -> Vec<(&'static str, usize, usize)> {
        let mut deeds = Vec::new();
        for (name, bank) in self.places() {
            deeds.push((name, bank.did(id, name).await, bank.undid(id, name).await));
        }
        deeds
    }

    /// Whole, or wholly undone, as the client was told.
    async fn check(&self, id: &str, outcome: &SagaOutcome, case: &str) {
        let deeds = self.deeds(id).await;
        match outcome {
            SagaOutcome::Completed(_) => {
                let whole = deeds.iter().all(|(_, did, undid)| (*did, *undid) == (1, 0));
                assert!(whole, "{case}: completed, but {deeds:?}");
            }
            SagaOutcome::Compensated(_) => {
                let undone = deeds
                    .iter()
                    .all(|(_, did, undid)| did == undid && *did <= 1);
                assert!(undone, "{case}: compensated, but {deeds:?}");
                let past = deeds[3..].iter().all(|(_, did, _)| *did == 0);
                assert!(past, "{case}: undone past its pivot: {deeds:?}");
            }
            other => panic!("{case}: {other:?}"),
        }
    }
}

impl System {
    /// Runs a saga up to a step, and kills something there.
    async fn run_and_kill(&mut self, mishap: Mishap, step: &'static str, kill: Kill) {
        let case = format!("{mishap:?}, {kill:?} at {step}");
        let id = case.replace(['(', ')', '"', ' ', ','], "-");
        let client = self.coordinator.client().await;
        let saga = self.house.saga(&client, &id, mishap);
        let (saga, place) = self.run_up_to(step, &id, saga).await;
        match kill {
            Kill::CoordinatorBefore => {
                self.coordinator.process.kill();
                self.agents[place].process.resume();
                self.coordinator.restart().await;
            }
            Kill::CoordinatorAfter => {
                self.agents[place].process.resume();
                self.coordinator.kill_and_restart().await;
            }
            Kill::Agent => self.kill(Victim::Agent(place)).await,
        }
        let outcome = saga.await.expect("no panic").expect("it is taken");
        self.house.check(&id, &outcome, &case).await;
        match (mishap, &outcome) {
            (Mishap::Nothing, SagaOutcome::Completed(_)) => {}
            (Mishap::Refusal(at), SagaOutcome::Compensated(compensated)) => {
                let (_, bank) = self.house.places()[usize::from(at.as_bytes()[0] - b'a')];
                let participant = compensated.reason.participant.as_deref();
                assert_eq!(participant, Some(bank.name.as_str()), "{case}");
            }
            other => panic!("{case}: {other:?}"),
        }
    }

    /// Starts a saga and lets it run until this step is all that it waits for, with the step's agent paused. All before it is done then,
    /// and nothing after it can be.
    async fn run_up_to(
        &mut self,
        step: &'static str,
        id: &str,
        saga: SagaSubmission,
    ) -> (JoinHandle<Result<SagaOutcome, Error>>, usize) {
        let place = match step {
            "a" | "d" => POST,
            "c" => LITE,
            _ => MARIA,
        };
        // Another agent holds the saga up while this one, which does an earlier step too, does that.
        let other = match step {
            "d" => Some(MARIA),
            "e" => Some(LITE),
            _ => None,
        };
        self.agents[other.unwrap_or(place)].process.pause();
        let running = tokio::spawn(saga.submit());
        if let Some(other) = other {
            let before = if step == "d" { "a" } else { "b" };
            self.has_done(id, before).await;
            self.agents[place].process.pause();
            self.agents[other].process.resume();
        }
        let before: &[&str] = match step {
            "a" => &[],
            "b" | "c" => &["a"],
            "d" => &["b", "c"],
            _ => &["d"],
        };
        for before in before {
            self.has_done(id, before).await;
        }
        if before.is_empty() {
            eventually("the saga", || self.transaction_id(id)).await;
        }
        assert!(!running.is_finished(), "{id}");
        (running, place)
    }

    /// Cancels a saga while the agent at `paused` can't answer it, and kills something before or after the cancel is durable.
    async fn cancel_and_kill(&mut self, paused: usize, victim: Victim, heard: bool) -> bool {
        let case = format!("cancel, {paused} paused, {victim:?}, heard {heard}");
        let id = case.replace([',', '(', ')', ' '], "-");
        let client = self.coordinator.client().await;
        self.agents[paused].process.pause();
        let saga = tokio::spawn(self.house.saga(&client, &id, Mishap::Nothing).submit());
        let transaction = eventually("the saga", || self.transaction_id(&id)).await;
        let request = v1::AbortTransactionRequest {
            transaction_id: transaction,
            reason: "on second thoughts".into(),
        };
        let mut transactions = self.coordinator.transactions();
        let cancel = tokio::spawn(async move { transactions.abort_transaction(request).await });
        if heard {
            self.agents[paused].process.resume();
            let answer = cancel
                .await
                .expect("no panic")
                .expect("it is not past its pivot");
            let transaction = answer.into_inner().transaction.expect("it is shown");
            assert_eq!(
                transaction.state(),
                TransactionState::Compensating,
                "{case}"
            );
        }
        self.kill(victim).await;
        if !heard {
            self.agents[paused].process.resume();
        }
        let outcome = saga.await.expect("no panic").expect("it is taken");
        self.house.check(&id, &outcome, &case).await;
        let compensated = matches!(outcome, SagaOutcome::Compensated(_));
        assert!(compensated || !heard, "{case}: {outcome:?}");
        compensated
    }

    async fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::Coordinator => self.coordinator.kill_and_restart().await,
            Victim::Agent(place) => {
                self.agents[place].process.kill();
                self.agents[place].restart();
            }
        }
    }

    /// Waits until the coordinator knows that a step is done.
    async fn has_done(&self, request_id: &str, step: &'static str) {
        becomes(
            &format!("{step} of {request_id}"),
            Some(StepState::Done),
            || async {
                let id = self.transaction_id(request_id).await?;
                let saga = self.coordinator.transaction(&id).await.saga?;
                let found = saga.steps.iter().find(|found| found.name == step);
                found.map(|found| found.state())
            },
        )
        .await;
    }

    async fn transaction_id(&self, request_id: &str) -> Option<String> {
        let request = v1::ListTransactionsRequest {
            page_size: 1_000,
            ..Default::default()
        };
        let answer = self
            .coordinator
            .transactions()
            .list_transactions(request)
            .await;
        let transactions = answer.ok()?.into_inner().transactions;
        let found = transactions
            .into_iter()
            .find(|transaction| transaction.request_id == request_id);
        found.map(|transaction| transaction.transaction_id)
    }
}

/// Every step, where it goes well and where it is refused.
async fn kill_at_every_step(kill: Kill) {
    let mut system = system().await;
    for step in ["a", "b", "c", "d", "e"] {
        system.run_and_kill(Mishap::Nothing, step, kill).await;
        // What is retriable is tried until it is done, whoever says no.
        if step != "e" {
            system.run_and_kill(Mishap::Refusal(step), step, kill).await;
        }
    }
}

#[tokio::test]
async fn a_coordinator_killed_before_a_step_is_done_leaves_all_or_nothing() {
    kill_at_every_step(Kill::CoordinatorBefore).await;
}

#[tokio::test]
async fn a_coordinator_killed_while_a_step_is_done_leaves_all_or_nothing() {
    kill_at_every_step(Kill::CoordinatorAfter).await;
}

#[tokio::test]
async fn an_agent_killed_with_a_step_on_its_way_leaves_all_or_nothing() {
    kill_at_every_step(Kill::Agent).await;
}

#[tokio::test]
async fn a_cancelled_saga_is_wholly_undone_or_whole_whatever_is_killed_meanwhile() {
    let mut system = system().await;
    let mut compensated = 0;
    for paused in 0..3 {
        for heard in [false, true] {
            for victim in [Victim::Coordinator, Victim::Agent(paused)] {
                let undone = system.cancel_and_kill(paused, victim, heard).await;
                compensated += usize::from(undone);
            }
        }
    }
    eprintln!("{compensated} of 12 compensated");
}

#[tokio::test]
async fn a_step_that_was_sent_before_a_crash_of_the_coordinator_happens_once() {
    let mut system = system().await;
    let client = system.coordinator.client().await;
    // The step is on its way, and its agent sees it only when the coordinator is dead.
    system.agents[2].process.pause();
    let saga = tokio::spawn(
        system
            .house
            .saga(&client, "paused", Mishap::Nothing)
            .submit(),
    );
    becomes("the step before", 1, || async {
        system.house.post.did("paused", "a").await
    })
    .await;
    system.coordinator.process.kill();
    system.agents[2].process.resume();
    system.coordinator.restart().await;
    let outcome = saga.await.expect("no panic").expect("it is taken");
    assert!(matches!(outcome, SagaOutcome::Completed(_)), "{outcome:?}");
    system.house.check("paused", &outcome, "paused").await;
}

#[tokio::test]
async fn a_saga_whose_time_is_up_undoes_what_was_done_and_what_may_be() {
    let mut system = system().await;
    let client = system.coordinator.client().await;
    system.agents[2].process.pause();
    let saga = system.house.saga(&client, "late", Mishap::Nothing);
    let saga = tokio::spawn(saga.timeout(Duration::from_millis(500)).submit());
    becomes("the step before", 1, || async {
        system.house.post.did("late", "a").await
    })
    .await;
    let running = eventually("its deadline", || async {
        let id = system.transaction_id("late").await?;
        let saga = system.coordinator.transaction(&id).await.saga?;
        let deadline = SystemTime::try_from(saga.deadline?).ok()?;
        (SystemTime::now() > deadline + Duration::from_millis(100)).then_some(saga)
    })
    .await;
    let b = running.steps.iter().find(|step| step.name == "b");
    assert_eq!(
        b.map(|step| step.state()),
        Some(StepState::Running),
        "nobody knows of it yet"
    );
    system.agents[2].process.resume();
    let outcome = saga.await.expect("no panic").expect("it is taken");
    let SagaOutcome::Compensated(compensated) = &outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(compensated.reason.code, AbortCode::Timeout);
    system.house.check("late", &outcome, "late").await;
    assert_eq!(system.house.post.undid("late", "a").await, 1);
}

#[tokio::test]
async fn a_lock_outlives_the_coordinator_and_passes_on_when_its_saga_has_ended() {
    let mut system = system().await;
    let client = system.coordinator.client().await;
    system.agents[0].kill(&system.coordinator).await;
    let saga = |id: &str| {
        let saga = system.house.saga(&client, id, Mishap::Nothing);
        tokio::spawn(
            saga.lock("shared")
                .lock_timeout(Duration::from_secs(30))
                .submit(),
        )
    };
    let first = saga("one");
    let locks = |coordinator: &Coordinator| {
        let mut admin = coordinator.admin();
        async move {
            let answer = admin.list_locks(v1::ListLocksRequest::default()).await;
            let locks = answer.map(|answer| answer.into_inner().locks);
            let mut locks = locks.unwrap_or_default();
            locks.retain(|lock| lock.key == "shared");
            locks.pop()
        }
    };
    let held = eventually("the lock", || locks(&system.coordinator)).await;
    let second = saga("other");
    becomes("who waits for it", Some(1), || async {
        locks(&system.coordinator).await.map(|lock| lock.waiting)
    })
    .await;
    system.coordinator.kill_and_restart().await;
    let after = eventually("the lock", || locks(&system.coordinator)).await;
    assert_eq!(
        (after.transaction_id, after.token),
        (held.transaction_id, held.token)
    );
    system.agents[0].restart();
    for (id, saga) in [("one", first), ("other", second)] {
        let outcome = saga.await.expect("no panic").expect("it is taken");
        assert!(matches!(outcome, SagaOutcome::Completed(_)), "{outcome:?}");
        system.house.check(id, &outcome, id).await;
    }
    assert_eq!(locks(&system.coordinator).await, None);
    let token = |id: &'static str| {
        let system = &system;
        async move {
            let id = system.transaction_id(id).await.expect("it is there");
            let transaction = system.coordinator.transaction(&id).await;
            assert_eq!(transaction.state(), TransactionState::Committed);
            transaction.saga.expect("a saga").token
        }
    };
    assert!(token("other").await > token("one").await);
}

#[tokio::test]
async fn an_atomic_group_moves_money_between_two_databases_as_a_step_of_a_saga() {
    let system = system().await;
    let client = system.coordinator.client().await;
    let House { lite, post, maria } = &system.house;
    let saga = |id: &str, amount: i64| {
        let debit = unanimity_tests::bank::side("debit", id, 1, amount, -amount);
        let credit = unanimity_tests::bank::side("credit", id, 1, amount, amount);
        client
            .saga()
            .request_id(id)
            .step(
                acts(Step::new("book"), lite, id, "book").compensate(operation("undo", id, "book")),
            )
            .step(
                Step::pivot("pay")
                    .branch("post", debit)
                    .branch("maria", credit),
            )
            .step(acts(Step::retriable("tell"), maria, id, "tell"))
    };
    let outcome = saga("good", 10).submit().await.expect("it is taken");
    assert!(matches!(outcome, SagaOutcome::Completed(_)), "{outcome:?}");
    assert_eq!([post.balance(1).await, maria.balance(1).await], [90, 110]);
    assert_eq!(
        [
            lite.did("good", "book").await,
            maria.did("good", "tell").await
        ],
        [1, 1]
    );
    let outcome = saga("overdrawn", 1_000)
        .submit()
        .await
        .expect("it is taken");
    let SagaOutcome::Compensated(compensated) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(compensated.reason.code, AbortCode::Refused);
    assert_eq!(compensated.reason.participant.as_deref(), Some("post"));
    assert_eq!([post.balance(1).await, maria.balance(1).await], [90, 110]);
    assert_eq!(
        [
            lite.did("overdrawn", "book").await,
            lite.undid("overdrawn", "book").await
        ],
        [1, 1]
    );
    assert_eq!(maria.did("overdrawn", "tell").await, 0);
}
