//! Conversions between the generated messages and ours.

use bytes::Bytes;
use kiln_api::fsutil as pb;
use kiln_api::fsutil::packet::PacketType;

use crate::error::{Error, Result};
use crate::fsutil::{GoMode, Message, Stat};

/// Longest message accepted, in bytes; as long as those of the daemon's own services.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;

pub(crate) fn message_to_wire(message: Message) -> pb::Packet {
    let packet = |kind: PacketType| pb::Packet { r#type: kind.into(), ..pb::Packet::default() };
    match message {
        Message::Stat(stat) => {
            pb::Packet { stat: stat.map(|stat| stat_to_wire(*stat)), ..packet(PacketType::PacketStat) }
        }
        Message::Request(id) => pb::Packet { id, ..packet(PacketType::PacketReq) },
        Message::Data(id, data) => pb::Packet { id, data, ..packet(PacketType::PacketData) },
        Message::Fin => packet(PacketType::PacketFin),
        Message::Error(text) => pb::Packet { data: Bytes::from(text), ..packet(PacketType::PacketErr) },
    }
}

pub(crate) fn message_from_wire(packet: pb::Packet) -> Result<Message> {
    let kind = PacketType::try_from(packet.r#type)
        .map_err(|_| Error::protocol(format!("unknown packet type {}", packet.r#type)))?;
    Ok(match kind {
        PacketType::PacketStat => Message::Stat(packet.stat.map(|stat| Box::new(stat_from_wire(stat)))),
        PacketType::PacketReq => Message::Request(packet.id),
        PacketType::PacketData => Message::Data(packet.id, packet.data),
        PacketType::PacketFin => Message::Fin,
        PacketType::PacketErr => Message::Error(String::from_utf8_lossy(&packet.data).into_owned()),
    })
}

pub(crate) fn stat_to_wire(stat: Stat) -> pb::Stat {
    pb::Stat {
        path: stat.path,
        mode: stat.mode.0,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        mod_time: stat.mod_time,
        linkname: stat.linkname,
        devmajor: stat.dev_major,
        devminor: stat.dev_minor,
        xattrs: stat.xattrs,
    }
}

fn stat_from_wire(stat: pb::Stat) -> Stat {
    Stat {
        path: stat.path,
        mode: GoMode(stat.mode),
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        mod_time: stat.mod_time,
        linkname: stat.linkname,
        dev_major: stat.devmajor,
        dev_minor: stat.devminor,
        xattrs: stat.xattrs,
    }
}
