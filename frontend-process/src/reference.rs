use async_trait::async_trait;
use kiln_api::{fsutil, gateway as wire};
use kiln_frontend::{Error, FileRange, FileStat, Reference, Result, pb};

use crate::connection::Client;
use crate::error;

/// A result that the daemon keeps for this process.
#[derive(Clone, Debug)]
pub(crate) struct RemoteReference {
    pub(crate) id: String,
    pub(crate) definition: Option<pb::Definition>,
    pub(crate) client: Client,
    /// Whether the daemon knows the call that computes it.
    pub(crate) can_evaluate: bool,
}

impl RemoteReference {
    fn client(&self) -> Client {
        self.client.clone()
    }
}

#[async_trait]
impl Reference for RemoteReference {
    async fn read_file(&self, path: &str, range: Option<FileRange>) -> Result<Vec<u8>> {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let range = range.map(|r| wire::FileRange { offset: number(r.offset), length: number(r.length) });
        let asked = wire::ReadFileRequest {
            r#ref: self.id.clone(),
            file_path: path.to_owned(),
            range,
            mount_index: 0,
        };
        let answer = self.client().read_file(asked).await.map_err(error::path(path))?;
        Ok(answer.into_inner().data)
    }

    async fn read_dir(&self, path: &str, include_pattern: &str) -> Result<Vec<FileStat>> {
        let asked = wire::ReadDirRequest {
            r#ref: self.id.clone(),
            dir_path: path.to_owned(),
            include_pattern: include_pattern.to_owned(),
            mount_index: 0,
        };
        let answer = self.client().read_dir(asked).await.map_err(error::path(path))?;
        Ok(answer.into_inner().entries.into_iter().map(stat).collect())
    }

    async fn stat(&self, path: &str) -> Result<FileStat> {
        let asked = wire::StatFileRequest { r#ref: self.id.clone(), path: path.to_owned(), mount_index: 0 };
        let answer = self.client().stat_file(asked).await.map_err(error::path(path))?;
        let found = answer.into_inner().stat;
        found.map(stat).ok_or_else(|| Error::NotFound { path: path.to_owned() })
    }

    async fn evaluate(&self) -> Result<()> {
        if self.can_evaluate {
            let asked = wire::EvaluateRequest { r#ref: self.id.clone() };
            return self.client().evaluate(asked).await.map(drop).map_err(error::solve);
        }
        // Looking at the root computes it too.
        self.stat(".").await.map(drop)
    }

    fn definition(&self) -> Option<pb::Definition> {
        self.definition.clone()
    }
}

fn stat(stat: fsutil::Stat) -> FileStat {
    FileStat {
        path: stat.path,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        mod_time: stat.mod_time,
        linkname: stat.linkname,
        dev_major: stat.devmajor,
        dev_minor: stat.devminor,
    }
}
