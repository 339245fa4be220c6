//! From settings to a serving coordinator, and down again.
//!
//! ```text
//! bind ─▶ answer health checks: not serving ─▶ read the log ─▶ make the new epoch durable ─▶ serve
//! serve ─shutdown▶ health: not serving, no new transactions ─▶ nothing to wait for, or time is up ─▶ close sessions ─▶ write the log out
//! ```

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::{JoinError, JoinHandle, spawn_blocking},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{
    self, Certificate, Identity, Server, ServerTlsConfig,
    server::{Router, TcpIncoming},
};
use tonic_health::{pb::health_server::HealthServer, server::HealthService};
use tracing::{info, warn};
use unanimity_engine::{Input, Settings, Start};
use unanimity_proto::v1::{
    admin_service_server::AdminServiceServer, participant_service_server::ParticipantServiceServer,
    transaction_service_server::TransactionServiceServer,
};
use unanimity_wal::WalError;
use uuid::Uuid;

use crate::{
    clock::Clock,
    config::{Config, Tls},
    driver::{self, Running},
    exit::{self, Failure},
    health::Health,
    log::{self, LogThread, OpenError},
    services::{Front, Ready, admin::Admin, participant::Participants, transaction::Transactions},
};

/// The longest message that is taken, in bytes.
const MESSAGE_BYTES: usize = 8 << 20;
/// Calls of one connection that may wait at a time.
const STREAMS: u32 = 16_384;
/// A peer that is silent for so long is asked whether it is there; if it does not say so in the same time again, it is gone.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Connections may take so long to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// Runs a coordinator until `shutdown`. `ready` hears its address once it serves.
///
/// Several can run in one process. A failure of the log, or a broken invariant, ends the process itself: see `--help` for the codes.
///
/// # Errors
/// What kept it from serving; [`crate::exit_code`] has the code that belongs to it.
pub async fn serve(
    config: Config,
    shutdown: CancellationToken,
    ready: Option<oneshot::Sender<SocketAddr>>,
) -> anyhow::Result<()> {
    forget_address(config.ready_file.as_deref())?;
    let listener = TcpListener::bind(config.listen).await.map_err(|error| {
        let message = format!(
            "{} can't be listened on: {error}; choose another with --listen",
            config.listen
        );
        Failure::new(exit::ADDRESS, message)
    })?;
    let address = listener
        .local_addr()
        .context("the listener has an address")?;
    let front = Front::new(config.timeouts());
    let (health, health_service) = Health::new().await;
    let router = router(&config, &front, health_service)?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = tokio::spawn(
        router.serve_with_incoming_shutdown(incoming, front.closing.clone().cancelled_owned()),
    );
    // Whatever way this function is left, the server must not outlive it.
    let _closing = front.closing.clone().drop_guard();
    let core = Core::start(&config).await?;
    let coordinator = Coordinator {
        config,
        front,
        health,
        server,
        core,
    };
    coordinator.run(address, shutdown, ready).await
}

/// Everything that runs.
struct Coordinator {
    config: Config,
    front: Front,
    health: Health,
    server: JoinHandle<Result<(), transport::Error>>,
    core: Core,
}

impl Coordinator {
    async fn run(
        mut self,
        address: SocketAddr,
        shutdown: CancellationToken,
        ready: Option<oneshot::Sender<SocketAddr>>,
    ) -> anyhow::Result<()> {
        let draining = CancellationToken::new();
        let watch = tokio::spawn(
            self.health
                .clone()
                .watch(self.core.log.gauge.clone(), draining.clone()),
        );
        let handle = self.core.running.handle.clone();
        self.front.open(Ready {
            handle: handle.clone(),
            log: self.core.log.gauge.clone(),
        });
        self.health.set(true).await;
        let incarnation = handle.incarnation;
        info!(
            "serving on {address}, log {} epoch {}",
            incarnation.log, incarnation.epoch.0
        );
        tell_address(self.config.ready_file.as_deref(), address)?;
        if let Some(ready) = ready {
            // Who started us may not care any more.
            let _ = ready.send(address);
        }
        let ended = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = &mut self.server => Err(anyhow::anyhow!("the server ended by itself: {ended:?}")),
            ended = &mut self.core.running.task => Err(driver_ended(ended)),
        };
        draining.cancel();
        self.health.set(false).await;
        if ended.is_ok() {
            self.drain().await;
        }
        self.core.stop().await?;
        self.front.closing.cancel();
        if !self.server.is_finished() && timeout(GOODBYE, &mut self.server).await.is_err() {
            self.server.abort();
        }
        watch.abort();
        forget_address(self.config.ready_file.as_deref())?;
        info!("stopped");
        ended
    }

    /// Takes nothing new, and waits for what is in flight; of sagas only for the steps that are on their way.
    async fn drain(&self) {
        let handle = &self.core.running.handle;
        info!(timeout = ?self.config.drain_timeout, "draining");
        if handle.feed(vec![Input::Drain]).await.is_err() {
            return;
        }
        let drained = handle.reached(|progress| progress.drained);
        let in_time = timeout(self.config.drain_timeout, drained).await.is_ok();
        let left = handle
            .read(|engine| {
                (
                    engine.in_flight(),
                    engine.undelivered(),
                    engine.live_sagas(),
                )
            })
            .await;
        let (in_flight, undelivered, sagas) = left.unwrap_or_default();
        if !in_time {
            warn!(
                in_flight,
                undelivered,
                sagas,
                "time is up for draining; what is decided goes on after the next start, and so do sagas; the rest is aborted"
            );
        } else if sagas > 0 {
            info!(sagas, "drained; sagas go on after the next start");
        }
    }
}

/// The engine with its driver and its log.
struct Core {
    running: Running,
    log: LogThread,
}

impl Core {
    /// Reads the log, and waits until the new epoch is durable.
    async fn start(config: &Config) -> anyhow::Result<Self> {
        let directory = config.data_directory.clone();
        let segment_bytes = config.segment_bytes;
        let mut opened = spawn_blocking(move || log::open(&directory, segment_bytes))
            .await
            .context("reading the log")?
            .map_err(|error| failure(&error))?;
        let (clock, epoch_seq) = (Clock::start(), opened.next);
        let replay = std::mem::take(&mut opened.replay);
        let now = clock.now();
        let start = Start {
            next_seq: opened.next,
            now: now.moment,
            unix_ms: now.unix_ms,
            seed: Uuid::new_v4().as_u128(),
        };
        let engine = replay.start(opened.log, limits(config), start);
        failpoint!("coordinator.epoch.before");
        let (reports, heard) = mpsc::unbounded_channel();
        let log = log::start(opened, reports).context("the log thread can't be started")?;
        let running = driver::start(engine, clock, log.jobs.clone(), heard);
        running
            .handle
            .reached(|progress| progress.durable >= epoch_seq)
            .await?;
        failpoint!("coordinator.epoch.after");
        Ok(Core { running, log })
    }

    /// Stops the driver, then lets the log write all that it has.
    async fn stop(self) -> anyhow::Result<()> {
        self.running.stop.cancel();
        if !self.running.task.is_finished() {
            self.running.task.await.context("the driver")?;
        }
        let LogThread { jobs, thread, .. } = self.log;
        drop(jobs);
        spawn_blocking(move || thread.join())
            .await
            .context("the log thread")?
            .map_err(|_| anyhow::anyhow!("the log thread panicked"))
    }
}

/// A record must fit into a batch of the log with room to spare, or the log would fail at it.
fn limits(config: &Config) -> Settings {
    let batch = usize::try_from(config.segment_bytes / 4).unwrap_or(usize::MAX);
    Settings {
        max_saga_bytes: config.limits.max_saga_bytes.min(batch),
        ..config.limits
    }
}

/// Nobody asked it to end, so an invariant broke; its panic has been shown.
fn driver_ended(ended: Result<(), JoinError>) -> anyhow::Error {
    let message = match ended {
        Ok(()) => "the driver ended by itself".to_owned(),
        Err(panic) => format!("the driver failed: {panic}; please report it with the log output"),
    };
    Failure::new(exit::INTERNAL, message).into()
}

/// What to tell, and by which exit code, where the log can't be opened.
fn failure(error: &OpenError) -> Failure {
    let code = match error {
        OpenError::Record { .. } | OpenError::Incomplete { .. } => exit::LOG_DAMAGED,
        OpenError::Wal(error) => match error {
            WalError::Damaged { .. } | WalError::NotALog { .. } | WalError::WrongVersion { .. } => {
                exit::LOG_DAMAGED
            }
            WalError::InvalidOptions { .. } => exit::CONFIGURATION,
            WalError::InUse { .. } | WalError::Io { .. } | WalError::NoSpace { .. } => {
                exit::DIRECTORY
            }
            _ => exit::LOG_FAILED,
        },
    };
    Failure::new(code, error)
}

fn router(config: &Config, front: &Front, health: HealthService) -> anyhow::Result<Router> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(unanimity_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .context("reflection")?;
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS);
    if let Some(tls) = &config.tls {
        server = server.tls_config(tls_config(tls)?).map_err(|error| {
            Failure::new(
                exit::CONFIGURATION,
                format!("tls: the certificate or key can't be used: {error:?}"),
            )
        })?;
    }
    Ok(server
        .add_service(HealthServer::new(health))
        .add_service(reflection)
        .add_service(
            TransactionServiceServer::new(Transactions(front.clone()))
                .max_decoding_message_size(MESSAGE_BYTES),
        )
        .add_service(
            ParticipantServiceServer::new(Participants(front.clone()))
                .max_decoding_message_size(MESSAGE_BYTES),
        )
        .add_service(
            AdminServiceServer::new(Admin(front.clone())).max_decoding_message_size(MESSAGE_BYTES),
        ))
}

fn tls_config(tls: &Tls) -> anyhow::Result<ServerTlsConfig> {
    let read = |name: &str, path: &PathBuf| {
        fs::read(path).map_err(|error| {
            Failure::new(
                exit::CONFIGURATION,
                format!("tls.{name}: {} can't be read: {error}", path.display()),
            )
        })
    };
    let identity = Identity::from_pem(
        read("certificate", &tls.certificate)?,
        read("key", &tls.key)?,
    );
    let mut config = ServerTlsConfig::new().identity(identity);
    if let Some(authority) = &tls.client_authority {
        config = config.client_ca_root(Certificate::from_pem(read("client_authority", authority)?));
    }
    Ok(config)
}

/// Writes the address so that a reader sees all of it or nothing.
fn tell_address(file: Option<&Path>, address: SocketAddr) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let mut unfinished = file.as_os_str().to_owned();
    unfinished.push(".tmp");
    fs::write(&unfinished, format!("{address}\n"))
        .and_then(|()| fs::rename(&unfinished, file))
        .with_context(|| format!("the ready file {} can't be written", file.display()))
}

/// An address that is left over would send people to nowhere.
fn forget_address(file: Option<&Path>) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error)
            .with_context(|| format!("the ready file {} can't be removed", file.display())),
        _ => Ok(()),
    }
}
