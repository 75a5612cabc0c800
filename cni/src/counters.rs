//! What has gone through a namespace: counted at the host's ends of its devices, because those are where files can be read.

use std::path::Path;

use kiln_executor::samples::NetStat;
use serde_json::Value;

use crate::record::Record;

/// What the host's ends have counted so far; `None` if the plugins named none, as with devices that have no other end.
pub(crate) fn read(record: &Record) -> Option<NetStat> {
    let mut sum: Option<NetStat> = None;
    for device in devices(record.result.as_ref()?) {
        let dir = Path::new("/sys/class/net").join(device).join("statistics");
        // Where `/sys` is that of another network namespace, nothing is known.
        if !dir.exists() {
            return None;
        }
        let count = |name: &str| -> u64 {
            let text = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
            text.trim().parse().unwrap_or_default()
        };
        let sum = sum.get_or_insert_default();
        // What the host sends, the step receives.
        sum.rx_bytes += count("tx_bytes");
        sum.rx_packets += count("tx_packets");
        sum.rx_errors += count("tx_errors");
        sum.rx_dropped += count("tx_dropped");
        sum.tx_bytes += count("rx_bytes");
        sum.tx_packets += count("rx_packets");
        sum.tx_errors += count("rx_errors");
        sum.tx_dropped += count("rx_dropped");
    }
    sum
}

/// What has come since.
pub(crate) fn difference(now: &NetStat, before: &NetStat) -> NetStat {
    NetStat {
        rx_bytes: now.rx_bytes.saturating_sub(before.rx_bytes),
        rx_packets: now.rx_packets.saturating_sub(before.rx_packets),
        rx_errors: now.rx_errors.saturating_sub(before.rx_errors),
        rx_dropped: now.rx_dropped.saturating_sub(before.rx_dropped),
        tx_bytes: now.tx_bytes.saturating_sub(before.tx_bytes),
        tx_packets: now.tx_packets.saturating_sub(before.tx_packets),
        tx_errors: now.tx_errors.saturating_sub(before.tx_errors),
        tx_dropped: now.tx_dropped.saturating_sub(before.tx_dropped),
    }
}

/// The devices of a result that are outside of the namespace and belong to nobody else: `veth…`, and not the bridge.
fn devices(result: &Value) -> Vec<&str> {
    let interfaces =
        result.get("interfaces").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let outside = interfaces
        .iter()
        .filter(|interface| interface.get("sandbox").and_then(Value::as_str).unwrap_or_default().is_empty());
    let names = outside.filter_map(|interface| interface.get("name").and_then(Value::as_str));
    names.filter(|name| name.starts_with("veth") && !name.contains('/')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hosts_own_ends_count() {
        let result = serde_json::json!({"interfaces": [
            {"name": "buildkit0"}, {"name": "veth12"}, {"name": "eth0", "sandbox": "/x"},
            {"name": "veth99", "sandbox": "/x"}, {"name": "veth/../lo"}, {"mac": "x"}, 7,
        ]});
        assert_eq!(devices(&result), ["veth12"]);
        assert_eq!(devices(&Value::Null), Vec::<&str>::new());
    }
}
