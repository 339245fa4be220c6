//! SQLite's session extension, behind a safe face: recording what a branch changes, and making the same changes again.
//!
//! libsqlite3-sys declares these functions only with bindgen, so they are declared here by hand, from sqlite3.h of 3.51; the workspace's
//! `.cargo/config.toml` has the bundled SQLite compiled with them. Every call takes sqlx's locked handle: as long as that lives, sqlx's
//! worker thread leaves the connection alone.

#![allow(
    unsafe_code,
    reason = "SQLite's session extension has no Rust binding that builds without libclang"
)]

use std::{
    collections::HashMap,
    ffi::{CStr, c_char, c_int, c_void},
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use libsqlite3_sys::{
    SQLITE_ATTACH, SQLITE_BUSY, SQLITE_CANTOPEN, SQLITE_DBSTATUS_DEFERRED_FKS, SQLITE_DENY,
    SQLITE_DETACH, SQLITE_DONE, SQLITE_FULL, SQLITE_INTERRUPT, SQLITE_IOERR, SQLITE_LOCKED,
    SQLITE_NOMEM, SQLITE_OK, SQLITE_PERM, SQLITE_READONLY, SQLITE_ROW, SQLITE_SAVEPOINT,
    SQLITE_TRANSACTION, sqlite3, sqlite3_db_config, sqlite3_db_status, sqlite3_free,
    sqlite3_get_autocommit, sqlite3_set_authorizer, sqlite3_total_changes64,
};
use sqlx::sqlite::LockedSqliteHandle;

/// `SQLITE_SESSION_OBJCONFIG_ROWID`: record tables without a primary key too, by rowid.
const OBJCONFIG_ROWID: c_int = 2;
/// `SQLITE_DBCONFIG_ENABLE_TRIGGER`.
const DBCONFIG_ENABLE_TRIGGER: c_int = 1003;
/// `SQLITE_CHANGESETAPPLY_INVERT`: undo instead.
const APPLY_INVERT: c_int = 2;
/// `SQLITE_CHANGESETAPPLY_FKNOACTION`: what a foreign key's action changed is in the changeset; it must not act again.
const APPLY_FK_NO_ACTION: c_int = 8;
/// `SQLITE_CHANGESET_ABORT`: give up, and undo what was applied.
const CONFLICT_ABORT: c_int = 2;

#[repr(C)]
struct RawSession {
    _opaque: [u8; 0],
}

#[repr(C)]
struct RawIterator {
    _opaque: [u8; 0],
}

type Filter = unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int;
type OnConflict = unsafe extern "C" fn(*mut c_void, c_int, *mut RawIterator) -> c_int;

unsafe extern "C" {
    fn sqlite3session_create(
        db: *mut sqlite3,
        schema: *const c_char,
        session: *mut *mut RawSession,
    ) -> c_int;
    fn sqlite3session_object_config(
        session: *mut RawSession,
        option: c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn sqlite3session_attach(session: *mut RawSession, table: *const c_char) -> c_int;
    fn sqlite3session_isempty(session: *mut RawSession) -> c_int;
    fn sqlite3session_changeset(
        session: *mut RawSession,
        size: *mut c_int,
        changeset: *mut *mut c_void,
    ) -> c_int;
    fn sqlite3session_delete(session: *mut RawSession);
    fn sqlite3changeset_start(
        iterator: *mut *mut RawIterator,
        size: c_int,
        changeset: *mut c_void,
    ) -> c_int;
    fn sqlite3changeset_op(
        iterator: *mut RawIterator,
        table: *mut *const c_char,
        columns: *mut c_int,
        operation: *mut c_int,
        indirect: *mut c_int,
    ) -> c_int;
    fn sqlite3changeset_next(iterator: *mut RawIterator) -> c_int;
    fn sqlite3changeset_finalize(iterator: *mut RawIterator) -> c_int;
    fn sqlite3changeset_apply_v2(
        db: *mut sqlite3,
        size: c_int,
        changeset: *mut c_void,
        filter: Option<Filter>,
        on_conflict: Option<OnConflict>,
        context: *mut c_void,
        rebase: *mut *mut c_void,
        rebase_size: *mut c_int,
        flags: c_int,
    ) -> c_int;
}

/// SQLite's result code, where it is not OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("SQLite's result code {0}")]
pub(super) struct Code(c_int);

impl Code {
    /// Whether it speaks of the moment, not of the changes: a full disk, a device that failed, a statement that was interrupted.
    pub(super) fn may_pass(self) -> bool {
        matches!(
            self.0 & 0xFF,
            SQLITE_PERM
                | SQLITE_BUSY
                | SQLITE_LOCKED
                | SQLITE_NOMEM
                | SQLITE_READONLY
                | SQLITE_INTERRUPT
                | SQLITE_IOERR
                | SQLITE_FULL
                | SQLITE_CANTOPEN
        )
    }
}

impl From<Code> for sqlx::Error {
    fn from(code: Code) -> Self {
        Self::Protocol(code.to_string())
    }
}

fn ok(code: c_int) -> Result<(), Code> {
    if code == SQLITE_OK {
        Ok(())
    } else {
        Err(Code(code))
    }
}

/// Records the changes of one connection. It must be ended before the connection closes; one that is merely dropped is leaked, which costs
/// its memory and nothing else: SQLite doesn't touch it again once the connection is closed.
pub(super) struct Session {
    raw: NonNull<RawSession>,
    db: NonNull<sqlite3>,
}

// SAFETY: a session belongs to a connection, not to a thread, and each use of it goes through the connection's lock.
unsafe impl Send for Session {}

impl Session {
    /// Begins to record, all tables.
    pub(super) fn start(handle: &mut LockedSqliteHandle<'_>) -> Result<Self, Code> {
        let db = handle.as_raw_handle();
        let mut raw = ptr::null_mut();
        // SAFETY: the connection is open and locked; "main" is a C string; the out-pointer is ours.
        ok(unsafe { sqlite3session_create(db.as_ptr(), c"main".as_ptr(), &raw mut raw) })?;
        let raw = NonNull::new(raw).ok_or(Code(SQLITE_OK))?;
        let session = Self { raw, db };
        let mut on: c_int = 1;
        // SAFETY: the session was just made; the option takes a pointer to an int, which SQLite may write to.
        let configured = ok(unsafe {
            sqlite3session_object_config(raw.as_ptr(), OBJCONFIG_ROWID, (&raw mut on).cast())
        });
        // SAFETY: as above; a null table stands for all.
        let attached = configured
            .and_then(|()| ok(unsafe { sqlite3session_attach(raw.as_ptr(), ptr::null()) }));
        match attached {
            Ok(()) => Ok(session),
            Err(code) => {
                session.end(handle);
                Err(code)
            }
        }
    }

    /// Whether nothing was recorded.
    pub(super) fn is_empty(&self, handle: &mut LockedSqliteHandle<'_>) -> bool {
        self.check(handle);
        // SAFETY: the session is alive, and its connection locked.
        unsafe { sqlite3session_isempty(self.raw.as_ptr()) != 0 }
    }

    /// The net changes so far.
    pub(super) fn changeset(&self, handle: &mut LockedSqliteHandle<'_>) -> Result<Vec<u8>, Code> {
        self.check(handle);
        let (mut size, mut buffer) = (0, ptr::null_mut());
        // SAFETY: the session is alive, its connection locked, and the out-pointers are ours.
        ok(unsafe { sqlite3session_changeset(self.raw.as_ptr(), &raw mut size, &raw mut buffer) })?;
        if buffer.is_null() {
            return Ok(Vec::new());
        }
        let length = usize::try_from(size).unwrap_or(0);
        // SAFETY: SQLite gave us a buffer of that many bytes.
        let changeset = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), length) }.to_vec();
        // SAFETY: the buffer came from SQLite's allocator, and is ours to free.
        unsafe { sqlite3_free(buffer) };
        Ok(changeset)
    }

    /// Ends the recording.
    pub(super) fn end(self, handle: &mut LockedSqliteHandle<'_>) {
        self.check(handle);
        // SAFETY: the session is alive, its connection locked, and nothing uses the session afterwards.
        unsafe { sqlite3session_delete(self.raw.as_ptr()) };
    }

    fn check(&self, handle: &mut LockedSqliteHandle<'_>) {
        assert!(
            handle.as_raw_handle() == self.db,
            "a session is used with its own connection only"
        );
    }
}

/// How many rows of each table a changeset inserts, updates and deletes.
pub(super) fn count(changeset: &[u8]) -> Result<HashMap<String, i64>, Code> {
    let mut iterator = ptr::null_mut();
    let size = size(changeset)?;
    // SAFETY: SQLite only reads the buffer, which outlives the iterator; the out-pointer is ours.
    ok(unsafe {
        sqlite3changeset_start(
            &raw mut iterator,
            size,
            changeset.as_ptr().cast_mut().cast(),
        )
    })?;
    let mut counts: HashMap<String, i64> = HashMap::new();
    let read = loop {
        // SAFETY: the iterator is alive.
        match unsafe { sqlite3changeset_next(iterator) } {
            SQLITE_ROW => {}
            SQLITE_DONE => break Ok(()),
            code => break Err(Code(code)),
        }
        let (mut table, mut columns, mut operation, mut indirect) = (ptr::null(), 0, 0, 0);
        // SAFETY: the iterator stands on a change; the out-pointers are ours.
        let described = unsafe {
            sqlite3changeset_op(
                iterator,
                &raw mut table,
                &raw mut columns,
                &raw mut operation,
                &raw mut indirect,
            )
        };
        if let Err(code) = ok(described) {
            break Err(code);
        }
        // SAFETY: a C string that is valid until the iterator moves on.
        let table = unsafe { CStr::from_ptr(table) }.to_string_lossy();
        *counts.entry(table.into_owned()).or_default() += 1;
    };
    // SAFETY: the iterator is alive, and isn't used afterwards.
    let finalized = ok(unsafe { sqlite3changeset_finalize(iterator) });
    read.and(finalized).map(|()| counts)
}

fn size(changeset: &[u8]) -> Result<c_int, Code> {
    c_int::try_from(changeset.len()).map_err(|_| Code(libsqlite3_sys::SQLITE_TOOBIG))
}

/// Which way to apply a changeset.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    /// Undo it.
    Backward,
}

/// Why a changeset doesn't fit the database. Nothing of it was applied, or the transaction must be rolled back.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApplyError {
    /// A row differs from what the changeset expects.
    #[error("{0}")]
    Conflict(&'static str),
    /// Tables changed their shape: SQLite would have skipped their rows.
    #[error("only {applied} of {expected} changes found their table")]
    Skipped { applied: i64, expected: i64 },
    /// Anything else.
    #[error(transparent)]
    Code(#[from] Code),
}

/// Makes the changes of a changeset, all or none, inside the transaction that is open. Triggers are off meanwhile: what they changed is in
/// the changeset.
pub(super) fn apply(
    handle: &mut LockedSqliteHandle<'_>,
    changeset: &[u8],
    direction: Direction,
) -> Result<(), ApplyError> {
    let db = handle.as_raw_handle().as_ptr();
    let expected = count(changeset)?.values().sum();
    let size = size(changeset)?;
    let before = total_changes(handle);
    let mut conflict: c_int = 0;
    let flags = APPLY_FK_NO_ACTION
        | if direction == Direction::Backward {
            APPLY_INVERT
        } else {
            0
        };
    set_triggers(handle, false)?;
    // SAFETY: the connection is open and locked; SQLite only reads the changeset; the context is an int that outlives the call, and all
    // the callback touches; null filter and rebase are allowed.
    let applied = ok(unsafe {
        sqlite3changeset_apply_v2(
            db,
            size,
            changeset.as_ptr().cast_mut().cast(),
            None,
            Some(give_up),
            (&raw mut conflict).cast(),
            ptr::null_mut(),
            ptr::null_mut(),
            flags,
        )
    });
    set_triggers(handle, true)?;
    match (applied, conflict) {
        (Ok(()), _) => {}
        (Err(_), 1) => return Err(ApplyError::Conflict("a row has other values than before")),
        (Err(_), 2) => return Err(ApplyError::Conflict("a row is gone")),
        (Err(_), 3) => return Err(ApplyError::Conflict("a row of the same key is there")),
        (Err(_), 4) => return Err(ApplyError::Conflict("a constraint is in the way")),
        (Err(_), 5) => return Err(ApplyError::Conflict("a foreign key is violated")),
        (Err(code), _) => return Err(code.into()),
    }
    match total_changes(handle) - before {
        applied if applied == expected => Ok(()),
        applied => Err(ApplyError::Skipped { applied, expected }),
    }
}

/// Notes the kind of conflict, and gives up.
unsafe extern "C" fn give_up(context: *mut c_void, kind: c_int, _: *mut RawIterator) -> c_int {
    // SAFETY: the context is the int that `apply` handed over, alive until the call returns.
    unsafe { *context.cast::<c_int>() = kind };
    CONFLICT_ABORT
}

fn set_triggers(handle: &mut LockedSqliteHandle<'_>, on: bool) -> Result<(), Code> {
    let mut now: c_int = 0;
    // SAFETY: the connection is open and locked; the option takes an int and a pointer to an int.
    ok(unsafe {
        sqlite3_db_config(
            handle.as_raw_handle().as_ptr(),
            DBCONFIG_ENABLE_TRIGGER,
            c_int::from(on),
            &raw mut now,
        )
    })
}

/// From now on, while `guarded`, no statement is compiled that begins or ends a transaction, or attaches a database.
pub(super) fn keep_transaction(
    handle: &mut LockedSqliteHandle<'_>,
    guarded: Arc<AtomicBool>,
) -> Result<(), Code> {
    unsafe extern "C" fn authorize(
        guarded: *mut c_void,
        action: c_int,
        _: *const c_char,
        _: *const c_char,
        _: *const c_char,
        _: *const c_char,
    ) -> c_int {
        // SAFETY: it is the flag below, which is never freed.
        let guarded = unsafe { &*guarded.cast::<AtomicBool>() };
        let ends = [
            SQLITE_TRANSACTION,
            SQLITE_SAVEPOINT,
            SQLITE_ATTACH,
            SQLITE_DETACH,
        ];
        if ends.contains(&action) && guarded.load(Ordering::SeqCst) {
            SQLITE_DENY
        } else {
            SQLITE_OK
        }
    }
    let db = handle.as_raw_handle().as_ptr();
    // One reference is leaked for each connection, of which there are few: SQLite may call until it has closed, on a thread of sqlx's.
    let context = Arc::into_raw(guarded).cast_mut().cast();
    // SAFETY: the connection is open and locked; the callback only reads the flag, which lives for ever.
    ok(unsafe { sqlite3_set_authorizer(db, Some(authorize), context) })
}

/// Rows changed by this connection since it was opened, triggers and foreign keys included.
pub(super) fn total_changes(handle: &mut LockedSqliteHandle<'_>) -> i64 {
    // SAFETY: the connection is open and locked.
    unsafe { sqlite3_total_changes64(handle.as_raw_handle().as_ptr()) }
}

/// Whether a transaction is open.
pub(super) fn in_transaction(handle: &mut LockedSqliteHandle<'_>) -> bool {
    // SAFETY: the connection is open and locked.
    unsafe { sqlite3_get_autocommit(handle.as_raw_handle().as_ptr()) == 0 }
}

/// Whether a deferred foreign key is violated so far: then COMMIT would fail.
pub(super) fn violates_foreign_keys(handle: &mut LockedSqliteHandle<'_>) -> Result<bool, Code> {
    let (mut current, mut highest) = (0, 0);
    let db = handle.as_raw_handle().as_ptr();
    // SAFETY: the connection is open and locked; the out-pointers are ours.
    ok(unsafe {
        sqlite3_db_status(
            db,
            SQLITE_DBSTATUS_DEFERRED_FKS,
            &raw mut current,
            &raw mut highest,
            0,
        )
    })?;
    Ok(current != 0)
}
