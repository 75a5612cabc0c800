//! `tar`: files in an archive.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_content::tar::{EntryType, Header, PAX_XATTR, Time, Writer};
use kiln_rootdir::Kind as FileKind;
use kiln_session::filesend;
use kiln_session::fsutil::{Stat, Tree};

use crate::archive::tar_error;
use crate::error::Result;
use crate::exporter::{ExportRequest, Exported, Exporter, Kind};
use crate::local::{FilesAttrs, one_of};
use crate::platforms::{epoch_of, platforms_of, state_of};
use crate::progress::begin;
use crate::trees::{in_platform_dir, tree_of};

#[derive(Debug)]
pub(crate) struct TarExporter {
    id: usize,
    attrs: FilesAttrs,
}

impl TarExporter {
    pub(crate) fn new(id: usize, attrs: &BTreeMap<String, String>) -> Result<Self> {
        Ok(Self { id, attrs: FilesAttrs::load(attrs)? })
    }
}

#[async_trait]
impl Exporter for TarExporter {
    fn kind(&self) -> Kind {
        Kind::Tar
    }

    fn id(&self) -> usize {
        self.id
    }

    async fn export(&self, request: ExportRequest) -> Result<Exported> {
        request.source.refuse_attestations(false)?;
        let source = &request.source;
        let platforms = platforms_of(source, "unable to export multiple platforms without map")?;
        let mut trees = Vec::new();
        for platform in &platforms {
            let epoch = epoch_of(source, self.attrs.epoch, Some(&platform.id))?;
            let state = state_of(source, &platform.id)?;
            let tree = tree_of(state.as_ref(), epoch, &*request.provider).await?;
            // The attribute to split or not is for directories only.
            trees.push(if source.is_map() { in_platform_dir(tree, &platform.id, epoch) } else { tree });
        }
        let tree = one_of(trees);
        let client = request.client().await?;
        let _part = begin(&request.progress, "sending tarball");
        filesend::send_file(&client, self.id, &BTreeMap::new(), move |out| write_tree(&tree, out)).await?;
        Ok(Exported::default())
    }
}

/// Writes all of a tree as a tar.
fn write_tree(tree: &Arc<dyn Tree>, out: &mut dyn Write) -> io::Result<()> {
    let mut tar = Writer::new(out);
    tree.list(&mut |stat| {
        write_entry(tree, &stat, &mut tar)
            .map_err(|source| kiln_session::Error::Write { path: stat.path.clone(), source })?;
        Ok(ControlFlow::Continue(()))
    })
    .map_err(io::Error::other)?;
    tar.finish().map_err(tar_error)?;
    Ok(())
}

fn write_entry<W: Write>(tree: &Arc<dyn Tree>, stat: &Stat, tar: &mut Writer<W>) -> io::Result<()> {
    let header = header(stat);
    tar.header(&header).map_err(tar_error)?;
    if header.kind == EntryType::FILE && header.size > 0 {
        let mut content = tree.open(&stat.path).map_err(io::Error::other)?;
        io::copy(&mut content.reader, tar)?;
    }
    Ok(())
}

fn header(stat: &Stat) -> Header {
    let kind = stat.mode.kind();
    let mut name = stat.path.clone().into_bytes();
    if stat.mode.is_dir() {
        name.push(b'/');
    }
    let mut header = Header {
        name,
        link_name: stat.linkname.clone().into_bytes(),
        kind: match kind {
            Some(FileKind::Dir) => EntryType::DIR,
            Some(FileKind::Symlink) => EntryType::SYMLINK,
            Some(FileKind::CharDevice) => EntryType::CHAR,
            Some(FileKind::BlockDevice) => EntryType::BLOCK,
            Some(FileKind::Fifo) => EntryType::FIFO,
            _ if stat.linkname.is_empty() => EntryType::FILE,
            _ => EntryType::HARD_LINK,
        },
        mode: i64::from(stat.mode.posix()),
        uid: i64::from(stat.uid),
        gid: i64::from(stat.gid),
        mtime: Some(Time {
            seconds: stat.mod_time.div_euclid(1_000_000_000),
            nanoseconds: u32::try_from(stat.mod_time.rem_euclid(1_000_000_000)).unwrap_or_default(),
        }),
        dev_major: stat.dev_major,
        dev_minor: stat.dev_minor,
        ..Header::default()
    };
    if header.kind == EntryType::FILE {
        header.size = stat.size;
    }
    for (key, value) in &stat.xattrs {
        header.pax.insert(format!("{PAX_XATTR}{key}").into_bytes(), value.clone());
    }
    header
}
