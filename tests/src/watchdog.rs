//! Ends what a test started, however the test process ends.
//!
//! Values in a `static` are never dropped, and a killed process drops nothing. So a small shell reads from a pipe what there is, and when the pipe
//! is closed, which the kernel does for a process that ends in any way, it kills and removes what is left.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{Mutex, OnceLock},
};

const SCRIPT: &str = r#"
processes=' ' directories=''
while read -r verb what; do
    case $verb in
        started) processes="$processes$what " ;;
        ended) processes="${processes%% $what *} ${processes#* $what }" ;;
        directory) directories="$directories$what
" ;;
    esac
done
for process in $processes; do kill -9 "-$process"; done 2> /dev/null
printf '%s' "$directories" | while read -r directory; do
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        rm -rf "$directory" && break
        sleep 0.3
    done
done 2> /dev/null
"#;

/// A process runs.
pub fn started(process: u32) {
    tell("started", &process.to_string());
}

/// A process has ended: its number may be another's soon.
pub fn ended(process: u32) {
    tell("ended", &process.to_string());
}

/// A directory to remove.
pub fn directory(path: &Path) {
    tell(
        "directory",
        path.to_str().expect("test directories have plain names"),
    );
}

fn tell(verb: &str, what: &str) {
    static PIPE: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
    let mut pipe = PIPE
        .get_or_init(|| Mutex::new(start()))
        .lock()
        .expect("nothing panics with the lock");
    writeln!(pipe, "{verb} {what}").expect("the watchdog reads as long as we run");
}

/// In a group of its own, so that Ctrl-C doesn't end it before its work is done.
#[expect(
    clippy::zombie_processes,
    reason = "it outlives us: that is what it is for"
)]
fn start() -> ChildStdin {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0);
    let child = shell.spawn().expect("there is a shell");
    child.stdin.expect("it was piped")
}
