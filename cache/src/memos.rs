//! Memos: what results were made of, so that builds can tell why a step has to run.
//!
//! A memo is written in the transaction that saves its result, and stays for a while after the result has gone, to
//! tell that. They are bounded in number and size; losing one costs an explanation, nothing else.

mod body;
mod coding;

use std::collections::BTreeMap;

use kiln_digest::Digest;
use kiln_solver::{GoneWhy, KeyAndSelector, KeyId, Memo, NewKey, Remembered, Wanted};
use rusqlite::{Connection, Transaction};

pub(crate) use self::coding::{Reader, Writer};
use crate::{
    Result,
    db::{
        keys,
        memos::{self, Hook, Row},
        rows,
    },
    memos::body::Body,
};

/// Memos that one way of looking finds.
const FOUND: usize = 8;
/// Alternatives of an input that are looked up, and that are remembered.
const ALTERNATIVES: usize = 8;

/// Saves a memo under a key. What holds in one session only is not worth remembering.
pub(crate) fn save(
    transaction: &Transaction<'_>,
    id: &KeyId,
    key: &NewKey,
    memo: &Memo,
    now: i64,
) -> Result<()> {
    if key.digest.is_random() || id.is_random() {
        return Ok(());
    }
    let body = Body::new(key, memo);
    let base = body.deps.first().and_then(|alternatives| alternatives.first()).map(base_hook);
    let row = Row {
        key: id.as_str().to_owned(),
        output: i64::from(key.output.0),
        created_at: now,
        gone: None,
        body: body.encode(),
    };
    let kin = (!memo.fingerprint.kin().is_empty()).then(|| hook(memo.fingerprint.kin()));
    let hooks = [Some(hook(short_name(&memo.name))), kin, Some(hook(&key.digest.to_string())), base];
    let listings = memo.inputs.iter().zip(0_i64..);
    let listings = listings.filter_map(|(input, index)| Some((index, input.listing.as_deref()?)));
    memos::put(transaction, &row, hooks, listings)
}

/// The name that a key has had before, if this is the very key that a memo tells of and it is not known any more.
pub(crate) fn former_name(transaction: &Transaction<'_>, key: &NewKey, memo: &Memo) -> Result<Option<KeyId>> {
    let Some(again) = &memo.again else { return Ok(None) };
    if keys::is_known(transaction, again.as_str())? {
        return Ok(None);
    }
    let Some((_, row)) = memos::get(transaction, again.as_str())? else { return Ok(None) };
    let Some(body) = Body::decode(&row.body) else { return Ok(None) };
    let same = body.digest == key.digest
        && row.output == i64::from(key.output.0)
        && body.deps.len() == key.deps.len()
        && body.deps.iter().zip(&key.deps).all(|(then, now)| now.iter().any(|now| then.contains(now)));
    Ok(same.then(|| again.clone()))
}

/// What is remembered that comes near, newest first.
pub(crate) fn near(connection: &Connection, wanted: &Wanted<'_>) -> Result<Vec<Remembered>> {
    let mut ways = vec![(Hook::Name, hook(short_name(wanted.name)))];
    if !wanted.kin.is_empty() {
        ways.push((Hook::Kin, hook(wanted.kin)));
    }
    let digests = wanted.digests.iter().take(ALTERNATIVES);
    ways.extend(digests.map(|digest| (Hook::Digest, hook(&digest.to_string()))));
    let bases = wanted.deps.first().into_iter().flatten().filter(|base| !base.key.is_random());
    ways.extend(bases.take(ALTERNATIVES).map(|base| (Hook::Base, base_hook(base))));
    let output = i64::from(wanted.output.0);
    let mut found = BTreeMap::new();
    for (column, value) in ways {
        for (seq, row) in memos::find(connection, column, value, output, FOUND)? {
            found.entry(seq).or_insert(row);
        }
    }
    let mut all = Vec::with_capacity(found.len());
    for row in found.into_values().rev() {
        let Some(body) = Body::decode(&row.body) else { continue };
        let created_at = rows::time(row.created_at);
        let gone = row.gone.map(|(at, why)| (rows::time(at), why));
        all.push(body.remembered(KeyId::new(row.key), created_at, gone));
    }
    Ok(all)
}

/// A key that may have lost its last result: if so, its memo says when and why.
pub(crate) fn result_gone(transaction: &Transaction<'_>, key: &str, why: GoneWhy) -> Result<()> {
    if keys::results(transaction, key)?.is_empty() {
        memos::mark_gone(transaction, key, why, rows::nanos(std::time::SystemTime::now()))?;
    }
    Ok(())
}

fn hook(text: &str) -> i64 {
    let digest = Digest::of(text);
    i64::from_le_bytes(digest.as_bytes().first_chunk().copied().unwrap_or_default())
}

fn base_hook(base: &KeyAndSelector) -> i64 {
    // The selector is left out: who selects another part of the same input is near too.
    hook(base.key.as_str())
}

/// A name without the place in its stage, which changes with every step added: `[build 2/5] RUN x` is `RUN x`.
fn short_name(name: &str) -> &str {
    match name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((_, rest)) => rest,
        None => name,
    }
}
