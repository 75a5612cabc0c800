//! The daemon's log on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::settings::{LogFormat, Settings};

/// Installs the subscriber. Libraries that only matter when something is wrong with them log at a level less.
pub(crate) fn init(settings: &Settings) {
    let level = settings.log_level.as_str().to_lowercase();
    let filter = EnvFilter::new(format!("{level},h2=warn,hyper=warn,tower=warn,reqwest=warn,rustls=warn"));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let installed = match settings.log_format {
        LogFormat::Text => builder.with_ansi(false).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    debug_assert!(installed.is_ok(), "installed once");
}
