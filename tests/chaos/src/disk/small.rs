//! A disk of a chosen size, which can be filled up.
//!
//! It is a tmpfs in a mount namespace that belongs to a sleeping process, and is reached through that process's entry in `/proc`: nobody else
//! sees the mount, and it goes with the process, however that ends. Where the kernel does not allow it, that is an error to report as skipped.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use unanimity_tests::process::Process;

const MOUNTED: Duration = Duration::from_secs(5);
const BALLAST: &str = "ballast";

/// A small disk. What is on it is gone when this is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    _holder: Process,
}

impl SmallDisk {
    /// One of so many bytes. `scratch` is an empty directory to mount it over; what the mount says goes into a file beside it.
    ///
    /// # Errors
    /// Where that is not allowed here, and why.
    pub fn mount(scratch: &Path, bytes: u64) -> io::Result<Self> {
        let script =
            format!("mount -t tmpfs -o size={bytes},mode=700 none \"$0\" && exec sleep infinity");
        let namespace = match rustix::process::geteuid().is_root() {
            true => "-m",
            false => "-mr",
        };
        let mut command = Command::new("unshare");
        command.args([namespace, "sh", "-c", &script]).arg(scratch);
        let log = scratch.with_added_extension("log");
        let mut holder = Process::start(&mut command, &log);
        let scratch = fs::canonicalize(scratch)?;
        let mount = scratch.display().to_string();
        let mounts = format!("/proc/{}/mounts", holder.id());
        let deadline = Instant::now() + MOUNTED;
        loop {
            let there = fs::read_to_string(&mounts).unwrap_or_default();
            if there
                .lines()
                .any(|line| line.split(' ').nth(1) == Some(&mount))
            {
                break;
            }
            if holder.ended().is_some() || Instant::now() >= deadline {
                let said = holder.log();
                return Err(io::Error::other(format!(
                    "a tmpfs can't be mounted here: {}",
                    said.trim_end()
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self {
            path: PathBuf::from(format!("/proc/{}/root{mount}", holder.id())),
            _holder: holder,
        })
    }

    /// Where it is; good for every process of this user as long as the disk is there.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills it to the last byte, and says how many that were; 0 where it was full.
    ///
    /// # Errors
    /// Where something else than a lack of space comes in between.
    pub fn fill(&self) -> io::Result<u64> {
        let mut ballast = File::options()
            .create(true)
            .append(true)
            .open(self.path.join(BALLAST))?;
        let (zeros, mut filled) = (vec![0; 64 << 10], 0);
        loop {
            match ballast.write(&zeros) {
                Ok(0) => return Ok(filled),
                Ok(written) => filled += written as u64,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(filled),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives back what [`Self::fill`] took.
    ///
    /// # Errors
    /// Where it was not filled.
    pub fn free(&self) -> io::Result<()> {
        fs::remove_file(self.path.join(BALLAST))
    }
}
