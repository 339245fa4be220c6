//! The command line. Every setting may also stand in the file or in the environment: a flag wins over the environment, which wins over the
//! file, which wins over the default.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;

use crate::{
    config::{LogFormat, Span},
    exit,
};

/// Runs the coordinator: keeps the log of decisions and drives transactions across participants.
///
/// It needs a directory of its own for its log, on a disk that keeps what it has synced. Applications and participants dial the address
/// that it listens on. Stop it with SIGTERM or SIGINT: it takes no new transactions, lets those in flight end, and exits; what is decided
/// and not delivered by then goes on after the next start, and so do sagas.
#[derive(Clone, Debug, Default, Parser)]
#[command(
    name = "unanimity-coordinator",
    version,
    after_long_help = exit::HELP,
    after_help = "Example:\n  unanimity-coordinator --data-directory /var/lib/unanimity\n\nSee --help for the exit codes."
)]
pub struct Arguments {
    /// A TOML file with the settings below, each by its flag's name with underscores; unknown keys are refused.
    #[arg(long, value_name = "FILE", env = "UNANIMITY_CONFIG")]
    pub config: Option<PathBuf>,

    /// Where the log is kept; made if missing. One coordinator at a time may use it.
    #[arg(long, value_name = "DIRECTORY", env = "UNANIMITY_DATA_DIRECTORY")]
    pub data_directory: Option<PathBuf>,

    /// The address to listen on [default: 127.0.0.1:7420]. Port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS", env = "UNANIMITY_LISTEN")]
    pub listen: Option<SocketAddr>,

    /// Listen without TLS even where other machines can reach the address. Whoever can reach it can then run and settle transactions.
    #[arg(
        long,
        value_name = "BOOL",
        env = "UNANIMITY_INSECURE_LISTEN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub insecure_listen: Option<bool>,

    /// The certificate chain to show, in PEM. In the file: `certificate` under [tls].
    #[arg(long, value_name = "FILE", env = "UNANIMITY_TLS_CERTIFICATE")]
    pub tls_certificate: Option<PathBuf>,

    /// The certificate's private key, in PEM. In the file: `key` under [tls].
    #[arg(long, value_name = "FILE", env = "UNANIMITY_TLS_KEY")]
    pub tls_key: Option<PathBuf>,

    /// Take only clients and participants with a certificate of this authority, in PEM. In the file: `client_authority` under [tls].
    #[arg(long, value_name = "FILE", env = "UNANIMITY_TLS_CLIENT_AUTHORITY")]
    pub tls_client_authority: Option<PathBuf>,

    /// How long a transaction may stay undecided where its request does not say [default: 30s].
    #[arg(long, value_name = "SPAN", env = "UNANIMITY_TIMEOUT_DEFAULT")]
    pub timeout_default: Option<Span>,

    /// The longest that a request may say [default: 1h].
    #[arg(long, value_name = "SPAN", env = "UNANIMITY_TIMEOUT_MAX")]
    pub timeout_max: Option<Span>,

    /// How long a saga may take before it turns back, where its request does not say [default: 1h].
    #[arg(long, value_name = "SPAN", env = "UNANIMITY_SAGA_TIMEOUT_DEFAULT")]
    pub saga_timeout_default: Option<Span>,

    /// The longest that a saga's request may say, for itself and for its locks [default: 720h].
    #[arg(long, value_name = "SPAN", env = "UNANIMITY_SAGA_TIMEOUT_MAX")]
    pub saga_timeout_max: Option<Span>,

    /// How long to wait at the end for transactions in flight, and for a saga's steps that are on their way [default: 10s].
    #[arg(long, value_name = "SPAN", env = "UNANIMITY_DRAIN_TIMEOUT")]
    pub drain_timeout: Option<Span>,

    /// The size of a log segment: a multiple of 512 from 1048576 to 1073741824 [default: 67108864].
    #[arg(long, value_name = "BYTES", env = "UNANIMITY_SEGMENT_BYTES")]
    pub segment_bytes: Option<u64>,

    /// Transactions that may be in flight [default: 100000]. This and those below stand under [limits] in the file.
    #[arg(long, value_name = "NUMBER", env = "UNANIMITY_MAX_IN_FLIGHT")]
    pub max_in_flight: Option<usize>,

    /// Branches that a transaction may have [default: 64].
    #[arg(long, value_name = "NUMBER", env = "UNANIMITY_MAX_BRANCHES")]
    pub max_branches: Option<usize>,

    /// Bytes of operations that a transaction may have, up to 4194304 [default: 1048576].
    #[arg(long, value_name = "BYTES", env = "UNANIMITY_MAX_PAYLOAD_BYTES")]
    pub max_payload_bytes: Option<usize>,

    /// How long an outcome can be looked up, and its request id is known [default: 1h].
    #[arg(long, value_name = "SPAN", env = "UNANIMITY_RETENTION")]
    pub retention: Option<Span>,

    /// How many outcomes are kept at most [default: 200000].
    #[arg(long, value_name = "NUMBER", env = "UNANIMITY_MAX_REMEMBERED")]
    pub max_remembered: Option<usize>,

    /// How often participants are asked for their prepared branches [default: 2s].
    #[arg(long, value_name = "SPAN", env = "UNANIMITY_SCAN_INTERVAL")]
    pub scan_interval: Option<Span>,

    /// The first pause before a decision is sent again [default: 50ms].
    #[arg(long, value_name = "SPAN", env = "UNANIMITY_RETRY_MIN")]
    pub retry_min: Option<Span>,

    /// The longest pause before a decision is sent again [default: 5s].
    #[arg(long, value_name = "SPAN", env = "UNANIMITY_RETRY_MAX")]
    pub retry_max: Option<Span>,

    /// Write the address to this file once the coordinator serves; the file appears whole, or not at all.
    #[arg(long, value_name = "FILE", env = "UNANIMITY_READY_FILE")]
    pub ready_file: Option<PathBuf>,

    /// How log lines look on stderr: text or json [default: text].
    #[arg(long, value_name = "FORM", env = "UNANIMITY_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Which log lines are shown, as `info` or `warn,unanimity_coordinator=debug` [default: info].
    #[arg(long, value_name = "FILTER", env = "UNANIMITY_LOG")]
    pub log_filter: Option<String>,
}
