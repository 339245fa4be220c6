#![allow(unsafe_code, reason = "SQLite's session extension has no safe binding, and its generated one needs libclang")]
//! SQLite's session extension: what a transaction changed, as bytes, and those changes made once more.
//!
//! Every call into SQLite is made under [`SqliteConnection::lock_handle`], which keeps the driver's own thread away from the connection.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr::{self, NonNull},
};

use libsqlite3_sys::{SQLITE_DBCONFIG_ENABLE_TRIGGER, SQLITE_OK, sqlite3, sqlite3_db_config, sqlite3_errstr, sqlite3_free};
use sqlx::SqliteConnection;

#[repr(C)]
struct Session {
    _opaque: [u8; 0],
}

#[repr(C)]
struct Iterator {
    _opaque: [u8; 0],
}

type Filter = unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int;
type OnConflict = unsafe extern "C" fn(*mut c_void, c_int, *mut Iterator) -> c_int;

// As in the bundled sqlite3.h, 3.51; the flags in .cargo/config.toml compile them in.
unsafe extern "C" {
    fn sqlite3session_create(db: *mut sqlite3, schema: *const c_char, session: *mut *mut Session) -> c_int;
    fn sqlite3session_object_config(session: *mut Session, option: c_int, value: *mut c_void) -> c_int;
    fn sqlite3session_attach(session: *mut Session, table: *const c_char) -> c_int;
    fn sqlite3session_changeset(session: *mut Session, length: *mut c_int, bytes: *mut *mut c_void) -> c_int;
    fn sqlite3session_delete(session: *mut Session);
    fn sqlite3changeset_apply_v2(
        db: *mut sqlite3,
        length: c_int,
        bytes: *mut c_void,
        filter: Option<Filter>,
        conflict: Option<OnConflict>,
        context: *mut c_void,
        rebase: *mut *mut c_void,
        rebase_length: *mut c_int,
        flags: c_int,
    ) -> c_int;
    fn sqlite3changeset_op(
        iterator: *mut Iterator,
        table: *mut *const c_char,
        columns: *mut c_int,
        operation: *mut c_int,
        indirect: *mut c_int,
    ) -> c_int;
}

/// Rows of tables without a primary key count too, by their rowid.
const OBJECT_CONFIG_ROWID: c_int = 2;
/// What the referential actions did is among the recorded changes: doing it again would be once too often.
const APPLY_FOREIGN_KEYS_NO_ACTION: c_int = 8;
const CONFLICT_DATA: c_int = 1;
const CONFLICT_NOT_FOUND: c_int = 2;
const CONFLICT_EXISTS: c_int = 3;
const CONFLICT_CONSTRAINT: c_int = 4;
const CONFLICT_FOREIGN_KEY: c_int = 5;
const ANSWER_ABORT: c_int = 2;

/// Why changes could not be made once more.
#[derive(Debug)]
pub(super) enum ReplayError {
    /// The rows are not what they were, or a constraint is in the way.
    Conflict(String),
    /// SQLite, or the driver, failed.
    Failed(String),
}

/// Records what a connection changes, from its start.
///
/// Dropped without [`Self::stop`] it leaks: it can't reach the connection any more, which may be closed. SQLite itself doesn't mind.
pub(super) struct Recorder(NonNull<Session>);

// SAFETY: a session belongs to no thread. It must not be used at the same time as its connection: every use is under the connection's lock.
unsafe impl Send for Recorder {}
// SAFETY: nothing can be done through a shared reference.
unsafe impl Sync for Recorder {}

impl Recorder {
    /// Starts recording all tables of the main database.
    pub(super) async fn start(connection: &mut SqliteConnection) -> Result<Self, String> {
        let mut handle = connection.lock_handle().await.map_err(|error| error.to_string())?;
        // SAFETY: the lock is held until the end of this function.
        unsafe { start(handle.as_raw_handle()) }
    }

    /// What has been changed so far, net. `connection` must be the one that it was started on.
    pub(super) async fn changeset(&mut self, connection: &mut SqliteConnection) -> Result<Vec<u8>, String> {
        let _handle = connection.lock_handle().await.map_err(|error| error.to_string())?;
        // SAFETY: the session lives, and the lock of its connection is held.
        unsafe { changeset(self.0) }
    }

    /// Ends recording.
    pub(super) async fn stop(self, connection: &mut SqliteConnection) {
        if let Ok(_handle) = connection.lock_handle().await {
            // SAFETY: the session lives, its connection is open still and its lock is held; `self` is consumed.
            unsafe { sqlite3session_delete(self.0.as_ptr()) };
        }
    }
}

/// Makes recorded changes once more, in the connection's transaction: exactly them, or none.
///
/// Triggers don't fire meanwhile, for what they did was recorded. SQLite skips tables that it doesn't find, or that have changed, and calls
/// that a success. Hence the changes are recorded again while they are made: both recordings must be of one length.
pub(super) async fn replay(connection: &mut SqliteConnection, changes: &[u8]) -> Result<(), ReplayError> {
    let length = c_int::try_from(changes.len()).map_err(|_| ReplayError::Failed("more than 2 GiB of changes".into()))?;
    let mut handle = connection.lock_handle().await.map_err(|error| ReplayError::Failed(error.to_string()))?;
    let db = handle.as_raw_handle();
    // SAFETY: the lock is held until the end of this function, so that nothing else uses the connection; the session is deleted before the
    // lock is given back; SQLite doesn't write to the changes, and doesn't keep them.
    unsafe {
        let again = start(db).map_err(ReplayError::Failed)?;
        triggers(db, false);
        let mut conflict: Option<String> = None;
        let code = sqlite3changeset_apply_v2(
            db.as_ptr(),
            length,
            changes.as_ptr().cast_mut().cast(),
            None,
            Some(on_conflict),
            ptr::from_mut(&mut conflict).cast(),
            ptr::null_mut(),
            ptr::null_mut(),
            APPLY_FOREIGN_KEYS_NO_ACTION,
        );
        triggers(db, true);
        let made = changeset(again.0);
        sqlite3session_delete(again.0.as_ptr());
        match (conflict, code) {
            (Some(conflict), _) => Err(ReplayError::Conflict(conflict)),
            (None, SQLITE_OK) => match made {
                Ok(made) if made.len() == changes.len() => Ok(()),
                Ok(_) => Err(ReplayError::Conflict("a table that was changed is missing, or has other columns".into())),
                Err(problem) => Err(ReplayError::Failed(problem)),
            },
            (None, code) => Err(ReplayError::Failed(describe(code))),
        }
    }
}

/// # Safety
/// The connection's lock must be held.
unsafe fn start(db: NonNull<sqlite3>) -> Result<Recorder, String> {
    let mut session = ptr::null_mut();
    let mut on: c_int = 1;
    // SAFETY: the pointers are valid for the calls; a null table means all.
    unsafe {
        let code = sqlite3session_create(db.as_ptr(), c"main".as_ptr(), &raw mut session);
        let made = NonNull::new(session).filter(|_| code == SQLITE_OK).ok_or_else(|| describe(code))?;
        let mut code = sqlite3session_object_config(session, OBJECT_CONFIG_ROWID, (&raw mut on).cast());
        if code == SQLITE_OK {
            code = sqlite3session_attach(session, ptr::null());
        }
        if code != SQLITE_OK {
            sqlite3session_delete(session);
            return Err(describe(code));
        }
        Ok(Recorder(made))
    }
}

/// # Safety
/// The session must live, and its connection's lock be held.
unsafe fn changeset(session: NonNull<Session>) -> Result<Vec<u8>, String> {
    let (mut length, mut bytes) = (0, ptr::null_mut());
    // SAFETY: the pointers are valid for the calls; on success SQLite hands over a buffer of that length, null where it is nought.
    unsafe {
        let code = sqlite3session_changeset(session.as_ptr(), &raw mut length, &raw mut bytes);
        let copied = match usize::try_from(length) {
            Ok(length) if code == SQLITE_OK && !bytes.is_null() => std::slice::from_raw_parts(bytes.cast::<u8>(), length).to_vec(),
            _ => Vec::new(),
        };
        sqlite3_free(bytes);
        if code == SQLITE_OK { Ok(copied) } else { Err(describe(code)) }
    }
}

/// # Safety
/// The connection's lock must be held.
unsafe fn triggers(db: NonNull<sqlite3>, on: bool) {
    // SAFETY: this option takes an integer and a pointer, which may be null.
    unsafe { sqlite3_db_config(db.as_ptr(), SQLITE_DBCONFIG_ENABLE_TRIGGER, c_int::from(on), ptr::null_mut::<c_int>()) };
}

/// Notes what is in the way, and gives up.
unsafe extern "C" fn on_conflict(context: *mut c_void, kind: c_int, iterator: *mut Iterator) -> c_int {
    let (mut table, mut columns, mut operation, mut indirect) = (ptr::null(), 0, 0, 0);
    let what = match kind {
        CONFLICT_DATA => "a row has other values than before",
        CONFLICT_NOT_FOUND => "a row is gone",
        CONFLICT_EXISTS => "a row is there already",
        CONFLICT_CONSTRAINT => "a constraint is in the way",
        CONFLICT_FOREIGN_KEY => "a foreign key is violated",
        _ => "the changes can't be made",
    };
    // SAFETY: SQLite hands back the context that it was given, which outlives the call. The iterator is valid while it is called, and names a
    // table except where the conflict is about foreign keys.
    unsafe {
        let named = kind != CONFLICT_FOREIGN_KEY
            && sqlite3changeset_op(iterator, &raw mut table, &raw mut columns, &raw mut operation, &raw mut indirect) == SQLITE_OK
            && !table.is_null();
        let text = if named { format!("table {}: {what}", CStr::from_ptr(table).to_string_lossy()) } else { what.to_owned() };
        *context.cast::<Option<String>>() = Some(text);
    }
    ANSWER_ABORT
}

fn describe(code: c_int) -> String {
    // SAFETY: SQLite answers with a static string for any code.
    let text = unsafe { sqlite3_errstr(code) };
    if text.is_null() {
        return format!("SQLite error {code}");
    }
    // SAFETY: not null, hence a string that ends with a nul.
    format!("SQLite: {}", unsafe { CStr::from_ptr(text) }.to_string_lossy())
}
