//! The next segment, filled with zeros in the background before it is needed, so that a rotation
//! neither waits for the zeros nor finds the disk full.

use std::fs::File;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How long to leave a full disk alone.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Makes a durable file of zeros, or stops early when the flag is set.
pub(crate) type Fill = fn(&Path, u64, &AtomicBool) -> io::Result<File>;

/// ```text
/// Absent ──start──▶ Filling ──▶ Ready ──take──▶ Absent
///    ▲                 │
///    └──────failed─────┘   tried again after a second
/// ```
enum State {
    Absent {
        failure: Option<(io::Error, Instant)>,
    },
    Filling(JoinHandle<io::Result<File>>),
    Ready(File),
}

/// Prepares one segment after another. Dropping it waits for the thread to end, so that nothing
/// touches the directory after its lock is released.
pub(crate) struct NextSegment {
    path: PathBuf,
    bytes: u64,
    fill: Fill,
    retry_after: Duration,
    cancelled: Arc<AtomicBool>,
    state: Mutex<State>,
}

impl NextSegment {
    /// Starts to prepare a segment of `bytes` at `path`.
    pub(crate) fn start(path: PathBuf, bytes: u64, fill: Fill) -> Self {
        let next = Self {
            path,
            bytes,
            fill,
            retry_after: RETRY_AFTER,
            cancelled: Arc::default(),
            state: Mutex::new(State::Absent { failure: None }),
        };
        next.retry();
        next
    }

    /// Whether the segment is on disk. Where an earlier attempt failed, a new one is started when due.
    pub(crate) fn is_ready(&self) -> bool {
        let mut state = self.settle();
        if let State::Absent { failure } = &*state
            && failure
                .as_ref()
                .is_none_or(|(_, at)| at.elapsed() >= self.retry_after)
        {
            *state = self.spawn();
        }
        matches!(*state, State::Ready(_))
    }

    /// Tries again now after a failure, because room may have been made.
    pub(crate) fn retry(&self) {
        let mut state = self.settle();
        if matches!(*state, State::Absent { .. }) {
            *state = self.spawn();
        }
    }

    /// Hands over the segment, waiting for it if need be. Fails as the last attempt did.
    pub(crate) fn take(&self) -> io::Result<File> {
        if !self.is_ready() {
            self.wait();
        }
        let mut state = self.lock();
        match mem::replace(&mut *state, State::Absent { failure: None }) {
            State::Ready(file) => Ok(file),
            State::Absent {
                failure: Some((error, at)),
            } => {
                let told = io::Error::new(error.kind(), error.to_string());
                let failure = Some((error, at));
                *state = State::Absent { failure };
                Err(told)
            }
            State::Absent { failure: None } | State::Filling(_) => {
                Err(io::Error::other("the next segment was not prepared"))
            }
        }
    }

    fn wait(&self) {
        let mut state = self.lock();
        finish(&mut state);
    }

    /// The state, after the thread's result was fetched if it has one.
    fn settle(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        if matches!(&*state, State::Filling(thread) if thread.is_finished()) {
            finish(&mut state);
        }
        state
    }

    fn spawn(&self) -> State {
        let (path, bytes, fill) = (self.path.clone(), self.bytes, self.fill);
        let cancelled = Arc::clone(&self.cancelled);
        let thread = Builder::new()
            .name("wal-next".to_owned())
            .spawn(move || fill(&path, bytes, &cancelled));
        match thread {
            Ok(thread) => State::Filling(thread),
            Err(error) => failed(error),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NextSegment {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.wait();
    }
}

/// Joins the thread, if there is one, and moves on to what came of it.
fn finish(state: &mut State) {
    let thread = match mem::replace(state, State::Absent { failure: None }) {
        State::Filling(thread) => thread,
        other => {
            *state = other;
            return;
        }
    };
    *state = match thread.join() {
        Ok(Ok(file)) => State::Ready(file),
        Ok(Err(error)) => failed(error),
        Err(_) => failed(io::Error::other("the thread that fills it panicked")),
    };
}

fn failed(error: io::Error) -> State {
    State::Absent {
        failure: Some((error, Instant::now())),
    }
}
