//! `du` and `prune`.

use std::io::{Write as _, stdout};

use kiln_cli::{Error, Format, Result, Table, UsageJson, bytes, row, summary, verbose_rows};
use kiln_client::{Prune, UsageFilter};

use crate::connection::Connection;
use crate::flags::Parsed;

/// What is put before an error of the daemon.
const DISK_USAGE: &str = "failed to call diskusage: ";

/// Prints the records of the cache.
pub(crate) async fn disk_usage(connection: &Connection<'_>, parsed: &Parsed) -> Result<()> {
    let format = Format::parse(parsed.text("format").unwrap_or_default())?;
    let client = connection.open(DISK_USAGE).await?;
    let mut filter = UsageFilter::default();
    filter.filters = parsed.list("filter").to_vec();
    let mut records =
        client.disk_usage(filter).await.map_err(|source| Error::Client { context: DISK_USAGE, source })?;
    records.sort_by(|a, b| (a.size, &a.id).cmp(&(b.size, &b.id)));
    if let Some(format) = format {
        let records: Vec<UsageJson<'_>> = records.iter().map(UsageJson::from).collect();
        return print(&format.line(&records)?);
    }
    let mut out = String::new();
    let mut table = Table::new();
    if parsed.is("verbose") {
        records.iter().for_each(|record| verbose_rows(&mut table, record));
    } else {
        row(&mut table, None, true);
        records.iter().for_each(|record| row(&mut table, Some(record), false));
    }
    out.push_str(&table.render());
    if parsed.list("filter").is_empty() {
        let mut table = Table::new();
        summary(&mut table, &records);
        out.push_str(&table.render());
    }
    print(&out)
}

/// Removes records of the cache and prints them as they go.
pub(crate) async fn prune(connection: &Connection<'_>, parsed: &Parsed) -> Result<()> {
    let format = Format::parse(parsed.text("format").unwrap_or_default())?;
    let client = connection.open("").await?;
    let failed = |error| Error::option(kiln_cli::rpc_text(&error));
    let mut request = Prune::default();
    request.filters = parsed.list("filter").to_vec();
    request.all = parsed.is("all");
    request.keep_duration = parsed.duration("keep-duration").to_std();
    request.reserved_space = parsed.megabytes("keep-storage-min");
    request.max_used_space = parsed.megabytes("keep-storage");
    request.min_free_space = parsed.megabytes("free-storage");
    let mut removed = client.prune(request).await.map_err(failed)?;
    let mut total = 0_i64;
    let mut first = true;
    while let Some(record) = tokio_stream::StreamExt::next(&mut removed).await {
        let record = record.map_err(failed)?;
        total = total.saturating_add(record.size);
        match format {
            Some(format) => print(&format.line(&UsageJson::from(&record))?)?,
            None => {
                let mut table = Table::new();
                if parsed.is("verbose") {
                    verbose_rows(&mut table, &record);
                } else {
                    row(&mut table, Some(&record), first);
                }
                print(&table.render())?;
            }
        }
        first = false;
    }
    if format.is_none() {
        print(&format!("Total:\t{}\n", bytes(total)))?;
    }
    Ok(())
}

/// Writes to standard output.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::option(format!("write /dev/stdout: {}", kiln_cli::io_text(&error))))
}
