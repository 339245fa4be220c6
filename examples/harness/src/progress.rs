//! A bar that grows.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::interval;

use crate::traffic::{Tally, Traffic};

/// Shows how far the clients are, for ever. Only a terminal gets to see it.
pub async fn show<T: Tally, Never>(
    traffic: &Traffic<T>,
    total: u64,
    what: &str,
    message: impl Fn(&T) -> String,
) -> Never {
    let template = format!("{{bar:40}} {{pos}}/{{len}} {what}, {{per_sec}}, {{msg}}");
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total).with_style(style);
    let mut ticks = interval(Duration::from_millis(100));
    loop {
        ticks.tick().await;
        let tally = traffic.tally();
        bar.set_position(tally.ended());
        bar.set_message(message(&tally));
    }
}
