//! The log thread: the one place that appends, syncs and trims.
//!
//! It takes all records that are queued, appends them by one write and one sync, and only then says that they are durable. A record that
//! nothing waits for rides along with the next one that something does wait for.
//!
//! **An ambiguous write is never answered.** After any failure of the log this thread ends the process itself, at once: whether the last
//! batch is on disk is decided by the next start, which reads it, and nobody has been told anything in between.

use std::{
    path::Path,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, info, warn};
use unanimity_engine::{DecodeError, LogId, Record, Replay, Seq};
use unanimity_wal::{Options, Wal, WalError};
use uuid::Uuid;

use crate::exit::{self, FailStop};

/// Records that nothing waits for are written after about this long at the latest.
const IDLE: Duration = Duration::from_secs(1);
/// As many bytes of them are written at once.
const LAZY_BYTES: usize = 1 << 20;
/// The segment after the current one may take this long to make before that is taken for a lack of space.
const PREPARE_PATIENCE: Duration = Duration::from_secs(5);

/// A record on its way to disk.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its number, which must be the log's own.
    pub(crate) seq: Seq,
    /// What.
    pub(crate) record: Record,
    /// Something waits for it.
    pub(crate) forced: bool,
}

/// What the log thread is asked.
#[derive(Debug)]
pub(crate) enum Job {
    /// Append these.
    Append(Vec<Entry>),
    /// Records below this one may go.
    Trim(Seq),
}

/// What the log thread says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// Every record up to this one is on disk.
    Durable(Seq),
    /// A new segment has begun.
    Rotated,
}

/// What others may see of the log without asking its thread.
#[derive(Clone, Debug)]
pub(crate) struct Gauge(Arc<GaugeCells>);

#[derive(Debug)]
struct GaugeCells {
    origin: Instant,
    /// Milliseconds since `origin`, plus one; 0 where no append runs.
    append_started: AtomicU64,
    space_low: AtomicBool,
}

impl Gauge {
    fn new() -> Self {
        Gauge(Arc::new(GaugeCells {
            origin: Instant::now(),
            append_started: AtomicU64::new(0),
            space_low: AtomicBool::new(false),
        }))
    }

    /// New transactions are to be refused; those in flight can still end.
    pub(crate) fn is_space_low(&self) -> bool {
        self.0.space_low.load(Ordering::Relaxed)
    }

    /// How long the append that is running has taken so far.
    pub(crate) fn append_age(&self) -> Option<Duration> {
        let started = self
            .0
            .append_started
            .load(Ordering::Relaxed)
            .checked_sub(1)?;
        Some(
            self.0
                .origin
                .elapsed()
                .saturating_sub(Duration::from_millis(started)),
        )
    }

    fn append_starts(&self) {
        self.0.append_started.store(
            self.0.origin.elapsed().as_millis() as u64 + 1,
            Ordering::Relaxed,
        );
    }

    fn append_ends(&self) {
        self.0.append_started.store(0, Ordering::Relaxed);
    }

    fn set_space_low(&self, low: bool) {
        match (self.0.space_low.swap(low, Ordering::Relaxed), low) {
            (false, true) => warn!(
                "the log is short of disk space: new transactions are refused until there is more"
            ),
            (true, false) => info!("the log has disk space again: new transactions are taken"),
            _ => {}
        }
    }
}

/// Why the log can't be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// By the log itself.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// A record is whole but says nothing to us.
    #[error("record {lsn} of the log in {directory}: {source}")]
    Record {
        lsn: u64,
        directory: String,
        source: DecodeError,
    },
    /// Its beginning is missing.
    #[error(
        "the log in {directory} begins at record {first}, and no whole checkpoint follows: segments are missing at its beginning; \
         put them back from where they were moved to"
    )]
    Incomplete { first: u64, directory: String },
}

/// A log that was read to its end.
pub(crate) struct Opened {
    wal: Wal,
    segment_bytes: u64,
    /// Its identity.
    pub(crate) log: LogId,
    /// The number of the next record.
    pub(crate) next: Seq,
    /// All that it holds, folded.
    pub(crate) replay: Replay,
}

/// Opens the log, or makes a new one. Blocks.
pub(crate) fn open(directory: &Path, segment_bytes: u64) -> Result<Opened, OpenError> {
    let (identity, salt) = (
        Uuid::new_v4().as_u128() as u32,
        Uuid::new_v4().as_u128() as u64,
    );
    let mut replay = Replay::new();
    let mut damage = None;
    let take = |lsn, bytes: &[u8]| match Record::decode(bytes) {
        Ok(record) => {
            failpoint!("coordinator.log.replay");
            replay.apply(record);
        }
        Err(source) => {
            damage.get_or_insert_with(|| OpenError::Record {
                lsn,
                directory: directory.display().to_string(),
                source,
            });
        }
    };
    let (wal, recovery) =
        Wal::open_with(directory, identity, salt, Options { segment_bytes }, take)?;
    if let Some(damage) = damage {
        return Err(damage);
    }
    if !replay.is_whole(Seq(recovery.first_lsn)) {
        return Err(OpenError::Incomplete {
            first: recovery.first_lsn,
            directory: directory.display().to_string(),
        });
    }
    if let Some(torn) = &recovery.torn_tail {
        warn!(
            lsn = torn.lsn,
            segment = %torn.segment.display(),
            bytes = torn.bytes,
            saved_as = ?torn.saved_as,
            "the log ended in a batch that a crash cut short; nobody had been told of it, and it was cut off"
        );
    }
    failpoint!("coordinator.log.opened");
    Ok(Opened {
        log: LogId(recovery.log_id),
        next: Seq(wal.next_lsn()),
        wal,
        segment_bytes,
        replay,
    })
}

/// The running log thread. It writes all it has and ends when the sender of its jobs is dropped.
pub(crate) struct LogThread {
    /// Where records go.
    pub(crate) jobs: Sender<Job>,
    /// What can be seen of it.
    pub(crate) gauge: Gauge,
    /// Ends when all is written.
    pub(crate) thread: thread::JoinHandle<()>,
}

/// Starts the thread.
pub(crate) fn start(
    opened: Opened,
    reports: UnboundedSender<Report>,
) -> std::io::Result<LogThread> {
    let (jobs, queue) = channel();
    let gauge = Gauge::new();
    let writer = Writer {
        expected: opened.next,
        // How full the current segment is can't be seen, so it is taken to be at least half full.
        since_rotation: opened.segment_bytes / 2,
        segment_bytes: opened.segment_bytes,
        wal: opened.wal,
        gauge: gauge.clone(),
        reports,
        waiting: Vec::new(),
        waiting_bytes: 0,
        waiting_since: None,
        forced: false,
        trim: None,
        space_checked: None,
        unprepared_since: None,
    };
    let thread = thread::Builder::new().name("log".into()).spawn(move || {
        let _guard = FailStop("the log thread");
        writer.run(&queue);
    })?;
    Ok(LogThread {
        jobs,
        gauge,
        thread,
    })
}

struct Writer {
    wal: Wal,
    segment_bytes: u64,
    /// The number of the next record to come.
    expected: Seq,
    gauge: Gauge,
    reports: UnboundedSender<Report>,
    /// Encoded, not yet written.
    waiting: Vec<Vec<u8>>,
    waiting_bytes: usize,
    /// Since when the first of them waits.
    waiting_since: Option<Instant>,
    /// Something waits for one of them.
    forced: bool,
    trim: Option<Seq>,
    /// Bytes written to the current segment.
    since_rotation: u64,
    space_checked: Option<Instant>,
    unprepared_since: Option<Instant>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Job>) {
        loop {
            let open = self.take(queue);
            if self.is_due() || open != Open::Busy {
                self.write();
            }
            self.trim();
            self.look_at_space();
            if open == Open::Ended {
                return;
            }
        }
    }

    /// Whether what waits is to be written now.
    fn is_due(&self) -> bool {
        let old = self
            .waiting_since
            .is_some_and(|since| since.elapsed() >= IDLE);
        self.forced || old || self.waiting_bytes >= LAZY_BYTES
    }

    /// Waits for a job, then takes all that are there.
    fn take(&mut self, queue: &Receiver<Job>) -> Open {
        let first = match queue.recv_timeout(IDLE) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => return Open::Idle,
            Err(RecvTimeoutError::Disconnected) => return Open::Ended,
        };
        self.absorb(first);
        while let Ok(job) = queue.try_recv() {
            self.absorb(job);
        }
        Open::Busy
    }

    fn absorb(&mut self, job: Job) {
        match job {
            Job::Trim(seq) => self.trim = self.trim.max(Some(seq)),
            Job::Append(entries) => {
                for Entry {
                    seq,
                    record,
                    forced,
                } in entries
                {
                    assert_eq!(
                        seq, self.expected,
                        "the engine numbers records as the log does"
                    );
                    self.expected.0 += 1;
                    self.forced |= forced;
                    let bytes = record.encode();
                    self.waiting_bytes += bytes.len();
                    self.waiting.push(bytes);
                    self.waiting_since.get_or_insert_with(Instant::now);
                }
            }
        }
    }

    /// Writes all that waits, in as many batches as the segment's size demands: usually one.
    fn write(&mut self) {
        let limit = (self.segment_bytes / 4) as usize;
        let mut rest = std::mem::take(&mut self.waiting).into_iter().peekable();
        while rest.peek().is_some() {
            let mut room = limit;
            let mut batch = Vec::new();
            while let Some(bytes) = rest.next_if(|bytes| batch.is_empty() || bytes.len() <= room) {
                room = room.saturating_sub(bytes.len());
                batch.push(bytes);
            }
            self.append(&batch);
        }
        self.waiting_bytes = 0;
        self.waiting_since = None;
        self.forced = false;
    }

    fn append(&mut self, batch: &[Vec<u8>]) {
        self.gauge.append_starts();
        if cfg!(unanimity_bug = "told-before-durable") {
            let newest = self.wal.next_lsn() + batch.len() as u64 - 1;
            let _ = self.reports.send(Report::Durable(Seq(newest)));
        }
        failpoint!("coordinator.log.append.before");
        let appended = self.wal.append(batch);
        match appended {
            Ok(last) => {
                failpoint!("coordinator.log.append.after");
                self.gauge.append_ends();
                self.since_rotation += batch.iter().map(|bytes| bytes.len() as u64).sum::<u64>();
                // The driver is gone only when the process is on its way down; then nobody waits.
                let _ = self.reports.send(Report::Durable(Seq(last)));
            }
            Err(failure) => fail_stop(&failure),
        }
        if self.wal.take_rotated() {
            self.since_rotation = 0;
            failpoint!("coordinator.log.rotated");
            let _ = self.reports.send(Report::Rotated);
        }
    }

    fn trim(&mut self) {
        let Some(keep_from) = self.trim.take() else {
            return;
        };
        // Whoever watches for a disk that hangs watches this too.
        self.gauge.append_starts();
        failpoint!("coordinator.log.trim.before");
        match self.wal.trim(keep_from.0) {
            Ok(()) => self.gauge.append_ends(),
            Err(failure) => fail_stop(&failure),
        }
        failpoint!("coordinator.log.trim.after");
    }

    /// At most once a second: can what is in flight still be decided, with room to spare?
    fn look_at_space(&mut self) {
        if self.space_checked.is_some_and(|at| at.elapsed() < IDLE) {
            return;
        }
        self.space_checked = Some(Instant::now());
        let unprepared = match (self.wal.can_rotate(), self.unprepared_since) {
            (true, _) => None,
            (false, since) => Some(since.unwrap_or_else(Instant::now)),
        };
        self.unprepared_since = unprepared;
        let stuck = unprepared.is_some_and(|since| since.elapsed() >= PREPARE_PATIENCE)
            && self.since_rotation >= self.segment_bytes / 2;
        let floor = self.segment_bytes.saturating_mul(2);
        // Where that can't be learned nothing is wrong with the log yet; but it is no time to take on more.
        let scarce = self.wal.free_space().map_or(true, |free| free < floor);
        self.gauge.set_space_low(stuck || scarce);
    }
}

/// How the wait for jobs ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    /// There were some.
    Busy,
    /// There were none for a while.
    Idle,
    /// There will never be any more.
    Ended,
}

/// Ends the process without another word to any client.
fn fail_stop(failure: &WalError) -> ! {
    error!(
        %failure,
        "the log failed, so the process ends now; nobody was told an outcome that hangs on it. The next start reads what is on disk and \
         decides by that"
    );
    process::exit(exit::LOG_FAILED.into())
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;
    use unanimity_engine::{Epoch, Moment, Settings, Start};

    use super::*;

    const SEGMENT: u64 = 1 << 20;

    fn entry(seq: u64, forced: bool) -> Entry {
        Entry {
            seq: Seq(seq),
            record: Record::Epoch(Epoch(seq)),
            forced,
        }
    }

    #[test]
    fn unforced_records_ride_along_and_are_written_at_the_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let (reports, mut heard) = unbounded_channel();
        let log =
            start(open(directory.path(), SEGMENT).expect("a log"), reports).expect("a thread");
        log.jobs
            .send(Job::Append(vec![entry(1, false), entry(2, true)]))
            .expect("sent");
        assert_eq!(heard.blocking_recv(), Some(Report::Durable(Seq(2))));
        log.jobs
            .send(Job::Append(vec![entry(3, false)]))
            .expect("sent");
        drop(log.jobs);
        log.thread.join().expect("ended");
        assert_eq!(heard.blocking_recv(), Some(Report::Durable(Seq(3))));

        let again = open(directory.path(), SEGMENT).expect("a log");
        assert_eq!(again.next, Seq(4));
        let start = Start {
            next_seq: again.next,
            now: Moment(0),
            unix_ms: 0,
            seed: 0,
        };
        let engine = again.replay.start(again.log, Settings::default(), start);
        assert_eq!(engine.incarnation().epoch, Epoch(4), "all three were read");
    }

    #[test]
    fn an_idle_log_writes_what_nothing_waits_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let (reports, mut heard) = unbounded_channel();
        let log =
            start(open(directory.path(), SEGMENT).expect("a log"), reports).expect("a thread");
        log.jobs
            .send(Job::Append(vec![entry(1, false)]))
            .expect("sent");
        assert_eq!(heard.blocking_recv(), Some(Report::Durable(Seq(1))));
        drop(log.jobs);
        log.thread.join().expect("ended");
    }
}
