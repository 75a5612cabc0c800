use bytes::Bytes;

use crate::fsutil::stat::Stat;

/// One packet of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Sender: the next entry of the listing; `None` after the last.
    Stat(Option<Box<Stat>>),
    /// Receiver: wants the content of the entry with this number, counted from 0 in the listing.
    Request(u32),
    /// Sender: a piece of that content; empty after the last.
    Data(u32, Bytes),
    /// Receiver, once it has everything; sender, as the answer.
    Fin,
    /// Either side: it failed.
    Error(String),
}

impl Message {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Stat(_) => "PACKET_STAT",
            Self::Request(_) => "PACKET_REQ",
            Self::Data(..) => "PACKET_DATA",
            Self::Fin => "PACKET_FIN",
            Self::Error(_) => "PACKET_ERR",
        }
    }
}
