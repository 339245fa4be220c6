//! One writer at a time.

use unanimity_wal::WalError;

use crate::scratch::Scratch;

#[test]
fn a_log_in_use_is_refused_and_names_the_process() {
    let scratch = Scratch::new(512);
    let (wal, _) = scratch.open().unwrap();
    let error = scratch.open().unwrap_err();
    let WalError::InUse { holder, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(*holder, Some(std::process::id()));
    assert!(error.to_string().contains("is in use by process"));
    drop(wal);
    assert!(scratch.open().is_ok());
}
