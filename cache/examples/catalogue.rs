//! A catalogue of a size, and what it costs by record. For `cargo xtask bench`.
//!
//! `catalogue fill DIR RECORDS` makes one whose snapshots are not there; `catalogue cost DIR` prints seconds for one look-up, one
//! insert and one removal by the collector, in a copy of it.

use std::{
    io::Write as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_cache::{CacheManager, CacheOptions, LayerBlob, PruneOptions, RecordOptions, RecordType};
use kiln_content::{Descriptor, LocalStore};
use kiln_digest::Digest;
use kiln_snapshot::OverlaySnapshotter;
use kiln_solver::{KeyAndSelector, KeyDigest, KeyId, NewKey, OutputIndex, ResultRef};
use rusqlite::{Connection, params};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Records that stand on each other, bottom to top.
const CHAIN: u64 = 10;
/// Bytes that the ledger has for each.
const SIZE: i64 = 4096;
/// How often each thing is done.
const TIMES: u64 = 1000;

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["fill", dir, records] => fill(Path::new(dir), records.parse()?).await,
        ["cost", dir] => {
            let copy = tempfile::tempdir_in(dir)?;
            std::fs::copy(Path::new(dir).join("catalogue.db"), copy.path().join("catalogue.db"))?;
            cost(copy.path()).await
        }
        _ => Err("usage: catalogue fill DIR RECORDS | catalogue cost DIR".into()),
    }
}

async fn open(dir: &Path) -> Result<CacheManager> {
    let snapshots = Arc::new(OverlaySnapshotter::open(dir.join("snapshots"))?);
    let content = Arc::new(LocalStore::open(dir.join("content"))?);
    Ok(CacheManager::open(CacheOptions::new(dir, snapshots, content)).await?)
}

fn op(number: u64) -> Digest {
    Digest::of(format!("op {number}"))
}

/// The name of the key of a record.
fn key(number: u64) -> String {
    match number % CHAIN {
        0 => KeyId::root(&op(number), 0).as_str().to_owned(),
        _ => format!("key{number}"),
    }
}

async fn fill(dir: &Path, records: u64) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    // The tables are made by the program itself.
    open(dir).await?.close().await?;
    let mut database = Connection::open(dir.join("catalogue.db"))?;
    database.pragma_update(None, "synchronous", "OFF")?;
    let transaction = database.transaction()?;
    {
        let mut record = transaction.prepare(
            "INSERT INTO records (seq, id, kind, mutable, snapshot, size, inodes, length, description, record_type, retain,
                 created_at, last_used_at, usage_count, changed)
             VALUES (?1, ?2, 0, 0, ?2, ?3, 1, 10, 'mount / from exec /bin/sh -c make', 'regular', 0, ?4, ?4, ?5, 0)",
        )?;
        let mut parent =
            transaction.prepare("INSERT INTO parents (record, position, parent) VALUES (?1, 0, ?2)")?;
        let mut known = transaction.prepare("INSERT INTO cache_keys (id) VALUES (?1)")?;
        let mut result =
            transaction.prepare("INSERT INTO key_results (key, record, created_at) VALUES (?1, ?2, ?3)")?;
        let mut link = transaction.prepare(
            "INSERT INTO key_links (key, input, digest, output, selector, target) VALUES (?1, 0, ?2, 0, '', ?3)",
        )?;
        let mut memo = transaction.prepare(
            "INSERT INTO memos (key, output, created_at, name, kin, digest, base, body) VALUES (?1, 0, ?2, ?3, ?4, ?5, ?6, x'')",
        )?;
        for number in 0..records {
            let seq = i64::try_from(number + 1)?;
            let id = format!("{number:025}");
            let time = 1_700_000_000_000_000_000 + seq;
            record.execute(params![seq, id, SIZE, time, seq % 17])?;
            known.execute([key(number)])?;
            result.execute(params![key(number), id, time])?;
            memo.execute(params![key(number), time, seq / 3, seq / 5, seq, seq / 2])?;
            if number % CHAIN > 0 {
                parent.execute(params![seq, seq - 1])?;
                link.execute(params![key(number - 1), op(number).to_string(), key(number)])?;
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

async fn cost(dir: &Path) -> Result<()> {
    let cache = open(dir).await?;
    let database = Connection::open(dir.join("catalogue.db"))?;
    let records: u64 =
        database.query_row("SELECT count(*) FROM records", [], |row| row.get::<_, i64>(0))?.try_into()?;
    drop(database);
    let keys = cache.keys();
    let mut seed = 1_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };

    let mut looked_up = Duration::ZERO;
    for _ in 0..TIMES {
        let chain = random() % (records / CHAIN) * CHAIN;
        let top = chain + CHAIN - 1;
        let from = KeyAndSelector { key: KeyId::new(key(top - 1)), selector: None };
        let start = Instant::now();
        let found = keys.query(&[vec![from]], &KeyDigest::Stable(op(top)), OutputIndex(0))?;
        let found = found.keys.first().ok_or("a key that is there was not found")?;
        let results = keys.records(found)?;
        looked_up += start.elapsed();
        assert_eq!(results.len(), 1);
    }

    let mut inserted = Duration::ZERO;
    for number in 0..TIMES {
        let new = random();
        let digest = Digest::of(format!("new {new} {number}"));
        let descriptor = Descriptor::new("application/vnd.oci.image.layer.v1.tar", digest, 1);
        let blob = LayerBlob { descriptor, diff_id: digest, source: "example.org/image:1".into() };
        let start = Instant::now();
        let layer = cache.lazy_layer(None, blob, RecordOptions::new("new", RecordType::Regular)).await?;
        let result: ResultRef = Arc::new(layer);
        let key = NewKey { digest: KeyDigest::Stable(digest), output: OutputIndex(0), deps: Vec::new() };
        keys.save(&[key], Some(&result)).await?;
        inserted += start.elapsed();
    }

    let total = i64::try_from(records)? * SIZE;
    let options =
        PruneOptions { max_used_space: total - i64::try_from(TIMES)? * SIZE, ..PruneOptions::default() };
    let (tell, mut told) = tokio::sync::mpsc::channel(64);
    let count = async {
        let mut count = 0_u32;
        while told.recv().await.is_some() {
            count += 1;
        }
        count
    };
    let start = Instant::now();
    let (outcome, removed) = tokio::join!(cache.prune(&options, tell), count);
    let collected = start.elapsed();
    outcome?;
    if removed == 0 {
        return Err("nothing was collected".into());
    }
    let times = f64::from(u32::try_from(TIMES)?);
    let costs = [
        looked_up.as_secs_f64() / times,
        inserted.as_secs_f64() / times,
        collected.as_secs_f64() / f64::from(removed),
    ];
    let mut out = std::io::stdout();
    costs.iter().try_for_each(|cost| writeln!(out, "{cost:.9}"))?;
    cache.close().await?;
    Ok(())
}
