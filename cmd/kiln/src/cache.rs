//! `du` and `prune`

use kiln_cli::{Duration, Error, Result, Table, bytes, row, summary, verbose_rows};
use kiln_client::{Prune, UsageFilter};
use tokio_stream::StreamExt as _;

use crate::args::{DuArgs, PruneArgs};
use crate::daemon;

/// Prints the records of the cache.
pub(crate) async fn disk_usage(args: DuArgs) -> Result<()> {
    let client = daemon::connect(&args.daemon).await?;
    let mut filter = UsageFilter::default();
    let all = args.filter.is_empty();
    filter.filters = args.filter;
    let mut records = client.disk_usage(filter).await?;
    records.sort_by(|a, b| (a.size, &a.id).cmp(&(b.size, &b.id)));
    let mut table = Table::new();
    if args.verbose {
        records.iter().for_each(|record| verbose_rows(&mut table, record));
    } else {
        row(&mut table, None, true);
        records.iter().for_each(|record| row(&mut table, Some(record), false));
    }
    let mut out = table.render();
    if all {
        let mut sums = Table::new();
        summary(&mut sums, &records);
        out.push_str(&sums.render());
    }
    crate::print(&out)
}

/// Removes records of the cache and prints them as they go.
pub(crate) async fn prune(args: PruneArgs) -> Result<()> {
    let keep = args.keep_duration.as_deref().map(Duration::parse).transpose().map_err(Error::option)?;
    let client = daemon::connect(&args.daemon).await?;
    let mut request = Prune::default();
    request.filters = args.filter;
    request.all = args.all;
    request.keep_duration = keep.unwrap_or_default().to_std();
    request.max_used_space = i64::from(args.keep_storage.unwrap_or_default()) * 1_000_000;
    let mut removed = client.prune(request).await?;
    let mut total = 0_i64;
    let mut first = true;
    while let Some(record) = removed.next().await {
        let record = record?;
        total = total.saturating_add(record.size);
        let mut table = Table::new();
        row(&mut table, Some(&record), first);
        crate::print(&table.render())?;
        first = false;
    }
    crate::print(&format!("Total:\t{}\n", bytes(total)))
}
