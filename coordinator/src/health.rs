//! The health service's one switch, and the watch over a log whose sync hangs.

use std::{process, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, HealthService},
};
use tracing::{error, warn};
use unanimity_proto::v1::{
    admin_service_server as admin, participant_service_server as participant,
    transaction_service_server as transaction,
};

use crate::{exit, log::Gauge};

/// All services go together: none is of use without the log.
const SERVICES: [&str; 4] = [
    "",
    transaction::SERVICE_NAME,
    participant::SERVICE_NAME,
    admin::SERVICE_NAME,
];

const LOOK: Duration = Duration::from_millis(250);
/// An append that takes so long is worth a warning.
const SLOW: Duration = Duration::from_secs(1);
/// From here on clients had better go elsewhere.
const STUCK: Duration = Duration::from_secs(5);
/// From here on a restart is the better bet.
const HOPELESS: Duration = Duration::from_secs(20);

/// The switch.
#[derive(Clone, Debug)]
pub(crate) struct Health(HealthReporter);

impl Health {
    /// Not serving yet.
    pub(crate) async fn new() -> (Self, HealthService) {
        let reporter = HealthReporter::new();
        let service = HealthService::from_health_reporter(reporter.clone());
        let health = Health(reporter);
        health.set(false).await;
        (health, service)
    }

    /// Tells all who ask and watch.
    pub(crate) async fn set(&self, serving: bool) {
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for service in SERVICES {
            self.0.set_service_status(service, status).await;
        }
    }

    /// Looks after the log for ever: warns of a slow sync, takes the services off while it hangs, and ends the process when there is no
    /// hope. Once `draining`, the services stay off.
    pub(crate) async fn watch(self, log: Gauge, draining: CancellationToken) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut level = Level::Fine;
        loop {
            look.tick().await;
            let age = log.append_age().unwrap_or_default();
            let now = Level::of(age);
            if now == level {
                continue;
            }
            match now {
                Level::Fine | Level::Slow if level == Level::Stuck && !draining.is_cancelled() => {
                    warn!("the log goes on");
                    self.set(true).await;
                }
                Level::Fine => {}
                Level::Slow => warn!(?age, "the log's sync is slow; is the disk busy?"),
                Level::Stuck => {
                    error!(
                        ?age,
                        "the log's sync hangs; nothing can be decided, so the services are reported as not serving"
                    );
                    self.set(false).await;
                }
                Level::Hopeless => {
                    error!(
                        ?age,
                        "the log's sync does not return, so the process ends; the next start reads what is on disk"
                    );
                    process::exit(exit::LOG_FAILED.into());
                }
            }
            level = now;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Fine,
    Slow,
    Stuck,
    Hopeless,
}

impl Level {
    fn of(age: Duration) -> Self {
        match age {
            age if age >= HOPELESS => Level::Hopeless,
            age if age >= STUCK => Level::Stuck,
            age if age >= SLOW => Level::Slow,
            _ => Level::Fine,
        }
    }
}
