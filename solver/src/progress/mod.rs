//! What a job's watchers are told.

mod clip;
mod event;
mod history;
mod inference;
mod log;
mod sink;

pub(crate) use crate::progress::event::CANCELED;
pub use crate::progress::event::{
    LogEvent, ProgressEvent, SourceRange, StatusEvent, StatusUpdate, Stream, VertexEvent, WarningEvent,
};
pub use crate::progress::inference::CachedInference;
pub(crate) use crate::progress::log::JobLog;
pub use crate::progress::log::ProgressStream;
pub use crate::progress::sink::VertexProgress;
