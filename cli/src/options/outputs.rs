//! Where results go.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal as _, stdout};
use std::path::{Path, PathBuf};

use kiln_client::attach::Target;
use kiln_client::{ExportEntry, ExportTarget};

use crate::error::{Error, Result};
use crate::go::parse_bool;
use crate::options::csv_pairs;

/// A wanted form of the result, as read from `--output`; nothing is opened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its type.
    pub kind: String,
    /// Its attributes, without `dest`.
    pub attrs: BTreeMap<String, String>,
    /// What comes back.
    pub destination: Destination,
}

/// What an exporter's result is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Nothing comes back.
    None,
    /// A directory.
    Dir(PathBuf),
    /// An OCI layout in a directory.
    Layout(PathBuf),
    /// A file.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

impl Output {
    /// Reads `type=…,key=value,…`.
    ///
    /// # Errors
    /// For what is no output, and for a missing or senseless `dest`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut kind = String::new();
        let mut attrs = BTreeMap::new();
        for (key, value) in csv_pairs(text)? {
            if key == "type" {
                kind = value;
            } else {
                attrs.insert(key, value);
            }
        }
        Self::new(kind, attrs)
    }

    /// From its parts; `dest` is still among the attributes.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn new(kind: String, mut attrs: BTreeMap<String, String>) -> Result<Self> {
        if kind.is_empty() {
            return Err(Error::option("--output requires type=<type>"));
        }
        if let Some(value) = attrs.get("output") {
            return Err(Error::option(format!(
                "output={value} not supported for --output, you meant dest={value}?"
            )));
        }
        let destination =
            destination(&kind, &attrs).map_err(|error| error.within("invalid output option: output"))?;
        if destination != Destination::None {
            attrs.remove("dest");
        }
        Ok(Self { kind, attrs, destination })
    }

    /// Creates the file, and gives what the client needs.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn open(self) -> Result<ExportEntry> {
        let target = match self.destination {
            Destination::None => ExportTarget::None,
            Destination::Dir(path) => ExportTarget::Files(Target::dir(path)),
            Destination::Layout(path) => ExportTarget::Layout(path),
            Destination::Stdout => ExportTarget::Files(Target::writer(Box::new(stdout()))),
            Destination::File(path) => {
                let file = File::create(&path).map_err(|error| {
                    Error::io("open", &path, &error).within("invalid output option: output")
                })?;
                ExportTarget::Files(Target::writer(Box::new(file)))
            }
        };
        Ok(ExportEntry { kind: self.kind, attrs: self.attrs, target })
    }
}

fn destination(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Destination> {
    let dest = attrs.get("dest").map(String::as_str).unwrap_or_default();
    let (takes_file, takes_dir) = match kind {
        "local" => (false, true),
        "tar" => (true, false),
        "oci" | "docker" => {
            let tar = match attrs.get("tar") {
                Some(text) => parse_bool(text)?,
                None => true,
            };
            (tar, !tar)
        }
        _ => (false, false),
    };
    if takes_dir {
        if dest.is_empty() {
            return Err(Error::option(format!("output directory is required for {kind} exporter")));
        }
        let dir = PathBuf::from(dest);
        return Ok(if kind == "local" { Destination::Dir(dir) } else { Destination::Layout(dir) });
    }
    if takes_file {
        if !dest.is_empty() && dest != "-" {
            if Path::new(dest).is_dir() {
                return Err(Error::option("destination file is a directory"));
            }
            return Ok(Destination::File(dest.into()));
        }
        if stdout().is_terminal() {
            return Err(Error::option(format!(
                "output file is required for {kind} exporter. refusing to write to console"
            )));
        }
        return Ok(Destination::Stdout);
    }
    if dest.is_empty() {
        Ok(Destination::None)
    } else {
        Err(Error::option(format!("output {dest} is not supported by {kind} exporter")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &str) {
        let got = match Output::parse(text) {
            Ok(output) => format!("{} {:?} {:?}", output.kind, output.attrs, output.destination),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, want);
    }

    #[test]
    fn outputs() {
        check(r#"type=image,"name=a,b",Push=true"#, r#"image {"name": "a,b", "push": "true"} None"#);
        check("type=oci,dest=o.tar,a=1,a=2", r#"oci {"a": "2"} File("o.tar")"#);
        check("type=oci,dest=dir,tar=false", r#"oci {"tar": "false"} Layout("dir")"#);
        check("type=local,dest=d", r#"local {} Dir("d")"#);
        check("foo=bar", "--output requires type=<type>");
        check("type", "invalid value type");
        check("type=local", "invalid output option: output: output directory is required for local exporter");
        check(
            "type=image,dest=/x",
            "invalid output option: output: output /x is not supported by image exporter",
        );
        check("type=tar,dest=/", "invalid output option: output: destination file is a directory");
        check("type=oci,output=/x", "output=/x not supported for --output, you meant dest=/x?");
    }

    #[test]
    fn a_file_is_there_before_the_build() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.tar");
        Output::parse(&format!("type=tar,dest={}", file.display())).unwrap().open().unwrap();
        assert!(file.exists());
        let missing = dir.path().join("none/x.tar");
        let refused = Output::parse(&format!("type=tar,dest={}", missing.display())).unwrap().open();
        let want =
            format!("invalid output option: output: open {}: no such file or directory", missing.display());
        assert_eq!(refused.unwrap_err().to_string(), want);
    }
}
