//! Connections to a database server: one that ends with its branch, and questions that survive one that has died.

use std::fmt::Display;

use sqlx::{
    AssertSqlSafe, Executor, Pool,
    pool::{PoolConnection, PoolOptions},
};
use tokio::time::{Instant, timeout, timeout_at};
use unanimity_proto::v1::AbortCode;

use crate::participant::{Refusal, Unavailable};

use super::{CONTROL_TIMEOUT, Failure, GRACE, refusal, within};

/// A pooled connection that may be inside a branch. Dropped without [`Self::release`] it closes, and the server rolls back, or keeps what is
/// prepared: sqlx knows nothing of the branch, and would hand the connection to the next borrower as it is.
pub(crate) struct Pooled<DB: sqlx::Database>(Option<PoolConnection<DB>>);

impl<DB: sqlx::Database> Pooled<DB> {
    pub(crate) fn connection(&mut self) -> &mut DB::Connection {
        self.0
            .as_mut()
            .expect("only release takes the connection, and it consumes the guard")
    }

    /// Back to the pool: the branch is over, or prepared and detached, and the connection idle.
    pub(crate) fn release(mut self) {
        self.0 = None;
    }
}

impl<DB: sqlx::Database> Drop for Pooled<DB> {
    fn drop(&mut self) {
        if let Some(mut connection) = self.0.take() {
            connection.close_on_drop();
        }
    }
}

impl<DB: sqlx::Database> Pooled<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    /// Runs statements of our own. What the server answers to them is inside.
    pub(crate) async fn script(
        &mut self,
        what: &str,
        script: String,
        deadline: Instant,
    ) -> Result<Result<Vec<DB::Row>, sqlx::Error>, Failure> {
        within(deadline, what, async { Ok(self.answer(script).await) }).await
    }

    async fn answer(&mut self, script: String) -> Result<Vec<DB::Row>, sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(script))
            .fetch_all(self.connection())
            .await
    }
}

/// The connections to one server.
pub(crate) struct Connections<DB: sqlx::Database> {
    pool: Pool<DB>,
    /// What people call the server.
    name: &'static str,
    /// Whether an error means that the server has closed the connection.
    is_dead: fn(&sqlx::Error) -> bool,
}

impl<DB: sqlx::Database> Connections<DB> {
    pub(crate) fn new(
        options: PoolOptions<DB>,
        connect: <DB::Connection as sqlx::Connection>::Options,
        name: &'static str,
        is_dead: fn(&sqlx::Error) -> bool,
    ) -> Self {
        // A connection that has died is found out at its first use, where nothing is lost yet: a ping each time costs a round trip.
        let pool = options
            .test_before_acquire(false)
            .connect_lazy_with(connect);
        Self {
            pool,
            name,
            is_dead,
        }
    }

    /// Runs a query of ours, outside any branch. What the server answers is inside.
    pub(crate) async fn query<T, W>(
        &self,
        work: impl Fn(Pooled<DB>) -> W,
    ) -> Result<Result<T, sqlx::Error>, String>
    where
        W: Future<Output = (Pooled<DB>, Result<T, sqlx::Error>)>,
    {
        let begun = self.first(Instant::now() + CONTROL_TIMEOUT, work).await;
        let (connection, answer) = begun.map_err(|refusal| refusal.message)?;
        // After an error the connection may be in some state: it is closed.
        if answer.is_ok() {
            connection.release();
        }
        Ok(answer)
    }

    /// Does the first work on a connection, and does it on another where the server has closed it meanwhile: nothing was done on it yet.
    async fn first<T, W>(
        &self,
        deadline: Instant,
        work: impl Fn(Pooled<DB>) -> W,
    ) -> Result<(Pooled<DB>, Result<T, sqlx::Error>), Refusal>
    where
        W: Future<Output = (Pooled<DB>, Result<T, sqlx::Error>)>,
    {
        let name = self.name;
        let unavailable = |problem| refusal(AbortCode::ParticipantUnavailable, problem);
        let mut problem = String::new();
        for _ in 0..=self.pool.options().get_max_connections() {
            let connection = timeout_at(deadline, self.pool.acquire())
                .await
                .map_err(|_| unavailable(format!("no connection to {name} became free in time")))?
                .map_err(|error| unavailable(format!("no connection to {name}: {error}")))?;
            let working = timeout_at(deadline + GRACE, work(Pooled(Some(connection))));
            match working.await.map_err(|_| self.silent())? {
                (_, Err(error)) if (self.is_dead)(&error) => problem = error.to_string(),
                answered => return Ok(answered),
            }
        }
        Err(unavailable(format!("no connection to {name}: {problem}")))
    }

    fn silent(&self) -> Refusal {
        refusal(AbortCode::Timeout, format!("{} doesn't answer", self.name))
    }
}

impl<DB: sqlx::Database> Connections<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    /// Begins a branch, by statements that do so. What the server answers to them is inside.
    pub(crate) async fn begin(
        &self,
        deadline: Instant,
        script: &str,
    ) -> Result<(Pooled<DB>, Result<Vec<DB::Row>, sqlx::Error>), Refusal> {
        self.first(deadline, |mut connection| async {
            let answer = connection.answer(script.to_owned()).await;
            (connection, answer)
        })
        .await
    }

    /// Commits a branch, by statements that read its marker back afterwards: that is the proof.
    pub(crate) async fn commit(
        &self,
        connection: &mut Pooled<DB>,
        script: String,
        deadline: Instant,
        failure: fn(&str, &sqlx::Error) -> Failure,
    ) -> Result<(), Refusal> {
        let limit = deadline.max(Instant::now() + CONTROL_TIMEOUT);
        match timeout_at(limit, connection.answer(script)).await {
            Ok(Ok(rows)) if !rows.is_empty() => Ok(()),
            Ok(Ok(_)) => Err(refusal(
                AbortCode::ParticipantFailure,
                format!("{} rolled back instead of committing", self.name),
            )),
            Ok(Err(error)) => Err(failure("commit", &error).refusal),
            Err(_) => Err(self.silent()),
        }
    }

    /// Runs statements of our own, outside any branch. What the server answers to them is inside.
    pub(crate) async fn script(
        &self,
        script: &str,
    ) -> Result<Result<Vec<DB::Row>, sqlx::Error>, String> {
        self.query(|mut connection| async {
            let answer = connection.answer(script.to_owned()).await;
            (connection, answer)
        })
        .await
    }
}

/// For the coordinator: an answer, or none.
pub(crate) fn available<T>(
    answer: Result<Result<T, sqlx::Error>, String>,
) -> Result<T, Unavailable> {
    answer
        .map_err(Unavailable)?
        .map_err(|error| Unavailable(error.to_string()))
}

/// Waits until a session is gone that was told to end: until then it could still act on what it was sent.
pub(crate) async fn fence(
    session: impl Display,
    gone: impl Future<Output = Result<(), sqlx::Error>>,
) {
    match timeout(CONTROL_TIMEOUT, gone).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%session, %error, "could not end an abandoned session"),
        Err(_) => tracing::warn!(%session, "an abandoned session does not end"),
    }
}
