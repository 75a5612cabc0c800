//! Records of the cache as tables and JSON.

use kiln_client::api::control::UsageRecord;
use kiln_progress::Timestamp;
use serde::Serialize;

use crate::go::{bytes, timestamp, timestamp_text};
use crate::table::Table;

/// The record in the JSON form of the reference's client.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageJson<'a> {
    id: &'a str,
    mutable: bool,
    in_use: bool,
    size: i64,
    created_at: Timestamp,
    last_used_at: Option<Timestamp>,
    usage_count: i64,
    parents: Option<&'a [String]>,
    description: &'a str,
    record_type: &'a str,
    shared: bool,
}

impl<'a> From<&'a UsageRecord> for UsageJson<'a> {
    fn from(record: &'a UsageRecord) -> Self {
        Self {
            id: &record.id,
            mutable: record.mutable,
            in_use: record.in_use,
            size: record.size,
            created_at: created_at(record),
            last_used_at: last_used_at(record),
            usage_count: record.usage_count,
            parents: (!record.parents.is_empty()).then_some(&record.parents),
            description: &record.description,
            record_type: &record.record_type,
            shared: record.shared,
        }
    }
}

/// Adds the header to a table of records.
fn header(table: &mut Table) {
    table.row(["ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED"]);
}

/// Adds a record to a table, under a header if it is the first; the last column stays empty.
pub fn row(table: &mut Table, record: Option<&UsageRecord>, first: bool) {
    if first {
        header(table);
    }
    let Some(record) = record else { return };
    let id = format!("{}{}", record.id, if record.mutable { "*" } else { "" });
    let size = format!("{}{}", bytes(record.size), if record.shared { "*" } else { "" });
    table.row([format!("{id:<71}"), format!("{:<11}", (!record.in_use).to_string()), size, String::new()]);
}

/// Adds everything about a record, and an empty line.
pub fn verbose_rows(table: &mut Table, record: &UsageRecord) {
    table.row(["ID:", &record.id]);
    if !record.parents.is_empty() {
        table.row(["Parents:", &record.parents.join(";")]);
    }
    table.row(["Created at:", &go_time(created_at(record))]);
    table.row(["Mutable:", &record.mutable.to_string()]);
    table.row(["Reclaimable:", &(!record.in_use).to_string()]);
    table.row(["Shared:", &record.shared.to_string()]);
    table.row(["Size:", &bytes(record.size)]);
    if !record.description.is_empty() {
        table.row(["Description:", &record.description]);
    }
    table.row(["Usage count:", &record.usage_count.to_string()]);
    if let Some(time) = last_used_at(record) {
        table.row(["Last used:", &go_time(time)]);
    }
    if !record.record_type.is_empty() {
        table.row(["Type:", &record.record_type]);
    }
    table.row([""]);
}

/// Adds the sums over all records.
pub fn summary(table: &mut Table, records: &[UsageRecord]) {
    let sum = |wanted: fn(&UsageRecord) -> bool| -> i64 {
        records.iter().filter(|record| wanted(record)).map(|record| record.size.max(0)).sum()
    };
    let (shared, total) = (sum(|record| record.shared), sum(|_| true));
    if shared > 0 {
        table.row(["Shared:", &bytes(shared)]);
        table.row(["Private:", &bytes(total - shared)]);
    }
    table.row(["Reclaimable:", &bytes(sum(|record| !record.in_use))]);
    table.row(["Total:", &bytes(total)]);
}

fn created_at(record: &UsageRecord) -> Timestamp {
    record.created_at.as_ref().map(|time| timestamp(time.seconds, time.nanos)).unwrap_or_default()
}

fn last_used_at(record: &UsageRecord) -> Option<Timestamp> {
    record.last_used_at.as_ref().map(|time| timestamp(time.seconds, time.nanos))
}

/// `2020-01-02 03:04:05 +0000 UTC`
fn go_time(time: Timestamp) -> String {
    timestamp_text(time).replace('T', " ").replace('Z', " +0000 UTC")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn records() -> Vec<UsageRecord> {
        let local = UsageRecord {
            id: "j9m8xrc8sjaawets74o4h3bj5".to_owned(),
            mutable: true,
            size: 4096,
            created_at: Some(std::time::SystemTime::UNIX_EPOCH.into()),
            usage_count: 1,
            description: "local source for context".to_owned(),
            record_type: "source.local".to_owned(),
            ..UsageRecord::default()
        };
        let layer = UsageRecord {
            id: "py62is5ooithwhpxfod7yhtjf".to_owned(),
            in_use: true,
            shared: true,
            size: 1_000_000,
            parents: vec!["a".to_owned(), "b".to_owned()],
            last_used_at: Some(std::time::SystemTime::UNIX_EPOCH.into()),
            ..UsageRecord::default()
        };
        vec![local, layer]
    }

    #[test]
    fn tables() {
        let records = records();
        let mut table = Table::new();
        for (index, record) in records.iter().enumerate() {
            row(&mut table, Some(record), index == 0);
        }
        summary(&mut table, &records);
        for record in &records {
            verbose_rows(&mut table, record);
        }
        let header = format!("ID{}RECLAIMABLE\tSIZE\tLAST ACCESSED\n", "\t".repeat(9));
        let got = table.render();
        let got = got.strip_prefix(&header).unwrap().replace('\t', "⇥");
        expect![[r#"
            j9m8xrc8sjaawets74o4h3bj5*                                             ⇥true       ⇥4.10kB⇥
            py62is5ooithwhpxfod7yhtjf                                              ⇥false      ⇥1.00MB*⇥
            Shared:⇥⇥⇥⇥⇥⇥⇥⇥⇥1.00MB
            Private:⇥⇥⇥⇥⇥⇥⇥⇥4.10kB
            Reclaimable:⇥⇥⇥⇥⇥⇥⇥⇥4.10kB
            Total:⇥⇥⇥⇥⇥⇥⇥⇥⇥1.00MB
            ID:⇥⇥⇥⇥⇥⇥⇥⇥⇥j9m8xrc8sjaawets74o4h3bj5
            Created at:⇥⇥⇥⇥⇥⇥⇥⇥1970-01-01 00:00:00 +0000 UTC
            Mutable:⇥⇥⇥⇥⇥⇥⇥⇥true
            Reclaimable:⇥⇥⇥⇥⇥⇥⇥⇥true
            Shared:⇥⇥⇥⇥⇥⇥⇥⇥⇥false
            Size:⇥⇥⇥⇥⇥⇥⇥⇥⇥4.10kB
            Description:⇥⇥⇥⇥⇥⇥⇥⇥local source for context
            Usage count:⇥⇥⇥⇥⇥⇥⇥⇥1
            Type:⇥⇥⇥⇥⇥⇥⇥⇥⇥source.local

            ID:⇥⇥py62is5ooithwhpxfod7yhtjf
            Parents:⇥a;b
            Created at:⇥1970-01-01 00:00:00 +0000 UTC
            Mutable:⇥false
            Reclaimable:⇥false
            Shared:⇥⇥true
            Size:⇥⇥1.00MB
            Usage count:⇥0
            Last used:⇥1970-01-01 00:00:00 +0000 UTC

        "#]]
        .assert_eq(&got);
    }
}
