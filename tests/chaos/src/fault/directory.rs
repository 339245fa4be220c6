//! The coordinator's directory is exchanged: for an empty one, or for a copy from some time ago.
//!
//! Clients are cut off meanwhile: what they would ask another log for, it would do anew, as the manual says.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::sync::MutexGuard;
use unanimity_chaos::proxy::Fault;
use unanimity_proto::v1::{InDoubtKind, ListInDoubtBranchesRequest};

use crate::{check::Violation, system::System, tables, trial::Trial, unit::Running};

use super::{Kind, Landing};

/// Longer than the pause between two looks of the coordinator for what is prepared, and than agents take to dial again.
const LOOKS: Duration = Duration::from_millis(3_500);

/// "The log is damaged, an old copy, or was written by another release".
const OLD_COPY: i32 = 65;

/// How often to try to kill it with something prepared.
const ATTEMPTS: u32 = 4;

/// How long to look for something prepared.
const LOOK: Duration = Duration::from_millis(1_500);

/// How long to wait until a copy is an old one.
const PATIENCE: Duration = Duration::from_secs(6);

/// An empty directory is another log: what the first one left prepared is foreign to it, and is not touched.
pub(super) async fn empty(trial: &Trial) {
    let mut running = trial.system.coordinator.running.lock().await;
    // Nobody else may heal the way of the clients meanwhile.
    let _held = trial.system.clients_link().held.lock().await;
    let landing = with_empty(trial, &mut running).await;
    trial.system.clients_link().proxy.heal();
    finish(trial, Kind::EmptyDirectory, landing);
}

async fn with_empty(trial: &Trial, running: &mut Running) -> Result<Landing> {
    let System { data, .. } = &trial.system;
    let aside = data.with_extension("aside");
    if !kill_with_something_prepared(trial, running).await? {
        return Ok(Landing::Skipped);
    }
    fs::rename(data, &aside)?;
    trial.system.coordinator.restart(running, None);
    let looked = look_at_foreign(trial).await;
    kill(trial, running);
    fs::remove_dir_all(data)?;
    fs::rename(&aside, data)?;
    trial.system.coordinator.restart(running, None);
    looked
}

/// Kills the coordinator between votes and decision, and leaves it so; false where that never came about.
async fn kill_with_something_prepared(trial: &Trial, running: &mut Running) -> Result<bool> {
    let clients = trial.system.clients_link();
    for _ in 0..ATTEMPTS {
        let begin = Instant::now();
        while tables::prepared(&trial.system.banks).await?.is_empty() && begin.elapsed() < LOOK {}
        kill(trial, running);
        clients.proxy.set(Fault::Reset);
        // What was on its way when it was killed is done.
        tokio::time::sleep(Duration::from_millis(500)).await;
        if !tables::prepared(&trial.system.banks).await?.is_empty() {
            return Ok(true);
        }
        trial.system.coordinator.restart(running, None);
        trial.system.serves().await?;
        clients.proxy.heal();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(false)
}

async fn look_at_foreign(trial: &Trial) -> Result<Landing> {
    trial.system.serves().await?;
    tokio::time::sleep(LOOKS).await;
    let request = ListInDoubtBranchesRequest::default();
    let listed = trial.system.admin().list_in_doubt_branches(request).await?;
    let branches = listed.into_inner().branches;
    for branch in &branches {
        if branch.kind() != InDoubtKind::Foreign {
            let what = format!("{branch:?} of another log");
            trial.broken(Violation::Touched { what });
        }
    }
    Ok(match branches.is_empty() {
        true => Landing::Indeterminate,
        false => Landing::Installed,
    })
}

/// With a copy that lacks what participants were told, the coordinator has to end before it presumes anything.
///
/// Agents only know this as long as they live, so that meanwhile none of them is killed.
pub(super) async fn old(trial: &Trial) {
    for _ in 0..ATTEMPTS {
        let landing = try_old(trial).await;
        if !matches!(landing, Ok(Landing::Skipped)) {
            return finish(trial, Kind::OldDirectory, landing);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    finish(trial, Kind::OldDirectory, Ok(Landing::Skipped));
}

async fn try_old(trial: &Trial) -> Result<Landing> {
    let mut agents = Vec::new();
    for agent in &trial.system.agents {
        agents.push(agent.running.lock().await);
    }
    let mut running = trial.system.coordinator.running.lock().await;
    with_old(trial, &mut running, agents).await
}

async fn with_old(
    trial: &Trial,
    running: &mut Running,
    mut agents: Vec<MutexGuard<'_, Running>>,
) -> Result<Landing> {
    let System { data, .. } = &trial.system;
    let (aside, copy) = (data.with_extension("aside"), data.with_extension("copy"));
    if running.process.ended().is_some() || !live(&mut agents) {
        return Ok(Landing::Skipped);
    }
    running.process.pause();
    let copied = copy_files(data, &copy);
    running.process.resume();
    copied?;
    let outdated = outdated(trial).await;
    let _clients = CutOff::new(&trial.system).await;
    if !outdated || running.process.ended().is_some() || !live(&mut agents) {
        fs::remove_dir_all(&copy)?;
        return Ok(Landing::Skipped);
    }
    kill(trial, running);
    fs::rename(data, &aside)?;
    fs::rename(&copy, data)?;
    trial.system.coordinator.restart(running, None);
    let landing = refuses(trial, running).await;
    if running.process.ended().is_none() {
        kill(trial, running);
    }
    fs::remove_dir_all(data)?;
    fs::rename(&aside, data)?;
    trial.system.coordinator.restart(running, None);
    Ok(landing)
}

fn live(agents: &mut [MutexGuard<'_, Running>]) -> bool {
    agents
        .iter_mut()
        .all(|agent| agent.process.ended().is_none())
}

/// Waits until participants were told of records that a copy made now lacks.
async fn outdated(trial: &Trial) -> bool {
    let begin = Instant::now();
    let banks = trial.system.banks.len();
    while !trial.recovery.all_worked_since(begin, banks) {
        if begin.elapsed() > PATIENCE {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

async fn refuses(trial: &Trial, running: &mut Running) -> Landing {
    let begin = Instant::now();
    while begin.elapsed() < 2 * LOOKS {
        match running.process.ended() {
            Some(status) if status.code() == Some(OLD_COPY) => return Landing::Installed,
            Some(status) => {
                let process = "coordinator on an old copy".to_owned();
                let how = status.to_string();
                trial.broken(Violation::Ended { process, how });
                return Landing::Installed;
            }
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    let what = "a coordinator went on with an old copy of its log".to_owned();
    trial.broken(Violation::Touched { what });
    Landing::Installed
}

fn kill(trial: &Trial, running: &mut Running) {
    if running.process.ended().is_none() {
        trial.killed(&trial.system.coordinator, None);
        running.process.kill();
    }
}

fn finish(trial: &Trial, kind: Kind, landing: Result<Landing>) {
    match landing {
        Ok(landing) => trial.landed(kind, landing, ""),
        Err(error) => {
            trial.landed(kind, Landing::Indeterminate, &format!("{error:#}"));
        }
    }
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        match fs::copy(file.path(), to.join(file.file_name())) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("copying the log"),
        }
    }
    Ok(())
}

/// Clients reach nobody until this is dropped.
struct CutOff<'a> {
    system: &'a System,
    _held: MutexGuard<'a, ()>,
}

impl<'a> CutOff<'a> {
    async fn new(system: &'a System) -> Self {
        let clients = system.clients_link();
        let held = clients.held.lock().await;
        clients.proxy.set(Fault::Reset);
        Self {
            system,
            _held: held,
        }
    }
}

impl Drop for CutOff<'_> {
    fn drop(&mut self) {
        self.system.clients_link().proxy.heal();
    }
}
