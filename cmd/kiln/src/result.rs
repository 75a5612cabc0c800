//! Where an image goes, and what is said about it afterwards.

use std::path::{Path, PathBuf};

use kiln_cli::options::{Destination, Output};
use kiln_cli::{Error, Result, bytes, random_id};
use kiln_client::attach::Target;
use kiln_client::{ExportEntry, ExportTarget};

use crate::args::BuildArgs;

/// One output of a build. Files are written beside their place and moved there after success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Product {
    output: Output,
    /// The file that is written, until it is moved.
    partial: Option<PathBuf>,
}

impl Product {
    /// What the flags ask for; with a name alone, an archive in the working directory that `docker load` reads.
    pub(crate) fn all(args: &BuildArgs) -> Result<Vec<Self>> {
        let name = args.tags.join(",");
        let mut outputs = Vec::new();
        for text in &args.outputs {
            outputs.push(if text.contains('=') {
                Output::parse(text)?
            } else if text == "-" {
                output("tar", &[("dest", "-")])?
            } else {
                output("local", &[("dest", text)])?
            });
        }
        for output in &mut outputs {
            let is_image = matches!(output.kind.as_str(), "image" | "docker" | "oci");
            if is_image && !name.is_empty() {
                output.attrs.entry("name".to_owned()).or_insert_with(|| name.clone());
            }
        }
        if args.push {
            if name.is_empty() {
                return Err(Error::option("--push needs a name: -t REGISTRY/NAME"));
            }
            match outputs.iter_mut().find(|output| output.kind == "image") {
                Some(output) => drop(output.attrs.insert("push".to_owned(), "true".to_owned())),
                None => outputs.push(output("image", &[("name", &name), ("push", "true")])?),
            }
        }
        if outputs.is_empty()
            && let Some(first) = args.tags.first()
        {
            // Docker's own format knows one platform only.
            let several = args.platform.as_deref().is_some_and(|platforms| platforms.contains(','));
            let kind = if several { "oci" } else { "docker" };
            outputs.push(output(kind, &[("name", &name), ("dest", &archive_name(first))])?);
        }
        Ok(outputs.into_iter().map(Self::new).collect())
    }

    fn new(output: Output) -> Self {
        let partial = match &output.destination {
            Destination::File(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                Some(path.with_file_name(format!(".{name}.{}", random_id())))
            }
            _ => None,
        };
        Self { output, partial }
    }

    /// Makes sure that the file can be written, and gives what the client needs.
    pub(crate) fn open(&self) -> Result<ExportEntry> {
        let mut output = self.output.clone();
        let (Destination::File(path), Some(partial)) = (&self.output.destination, &self.partial) else {
            return output.open();
        };
        output.destination = Destination::None;
        let file = std::fs::File::create(partial).map_err(|error| Error::io("create", path, &error))?;
        let mut entry = output.open()?;
        entry.target = ExportTarget::Files(Target::writer(Box::new(file)));
        Ok(entry)
    }

    /// Puts the file in its place.
    pub(crate) fn keep(&self) -> Result<()> {
        let (Destination::File(path), Some(partial)) = (&self.output.destination, &self.partial) else {
            return Ok(());
        };
        std::fs::rename(partial, path).map_err(|error| Error::io("rename", path, &error))
    }

    /// Removes what a failed build has written.
    pub(crate) fn discard(&self) {
        if let Some(partial) = &self.partial {
            // Not there if it was never opened.
            let _gone = std::fs::remove_file(partial);
        }
    }

    /// What was made and how to use it, in one line.
    pub(crate) fn line(&self, digest: Option<&str>) -> Option<String> {
        let Output { kind, attrs, destination } = &self.output;
        let name = attrs.get("name").map(String::as_str).unwrap_or_default();
        let digest = digest.unwrap_or_default();
        let named = if name.is_empty() { String::new() } else { format!("{name} ") };
        let line = match destination {
            Destination::File(path) => {
                let size = std::fs::metadata(path).map(|m| m.len()).unwrap_or_default();
                let size = bytes(i64::try_from(size).unwrap_or(i64::MAX));
                let path = shown(path);
                let usage = match kind.as_str() {
                    "docker" => format!("use it: docker load -i {path}"),
                    "oci" => format!("use it: skopeo copy oci-archive:{path} docker://REGISTRY/NAME"),
                    _ => format!("look into it: tar tf {path}"),
                };
                let digest = if digest.is_empty() { String::new() } else { format!("{digest}, ") };
                format!("{named}-> {path} ({kind} archive, {digest}{size}); {usage}")
            }
            Destination::Dir(path) => format!("{named}-> files in {}", shown(path)),
            Destination::Layout(path) => format!("{named}-> OCI layout {} ({digest})", shown(path)),
            Destination::None if attrs.get("push").map(String::as_str) == Some("true") => {
                format!(
                    "{named}-> pushed ({digest}); use it: docker pull {}",
                    name.split(',').next().unwrap_or(name)
                )
            }
            Destination::None => format!("{named}-> kept by the daemon ({digest})"),
            Destination::Stdout => return None,
        };
        Some(line)
    }
}

fn output(kind: &str, attrs: &[(&str, &str)]) -> Result<Output> {
    Output::new(kind.to_owned(), attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A file name from an image name: its last part, with the tag unless that is `latest`.
fn archive_name(name: &str) -> String {
    let name = name.split('@').next().unwrap_or(name);
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((last, "latest" | "")) => format!("{last}.tar"),
        Some((last, tag)) => format!("{last}-{tag}.tar"),
        None => format!("{last}.tar"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(words: &str, want: &[&str]) {
        use clap::Parser as _;
        let words = ["kiln", "build"].into_iter().chain(words.split(' ').filter(|word| !word.is_empty()));
        let args = crate::args::Args::try_parse_from(words).unwrap();
        let crate::args::Command::Build(args) = args.command else { panic!() };
        let got = match Product::all(&args) {
            Ok(products) => products
                .iter()
                .map(|Product { output, .. }| {
                    format!("{} {:?} {:?}", output.kind, output.attrs, output.destination)
                })
                .collect(),
            Err(error) => vec![error.to_string()],
        };
        assert_eq!(got, want);
    }

    #[test]
    fn products() {
        check("", &[]);
        check("-t hello", &[r#"docker {"name": "hello"} File("hello.tar")"#]);
        check("-t r.io:5000/a/b:1.2 -t c", &[r#"docker {"name": "r.io:5000/a/b:1.2,c"} File("b-1.2.tar")"#]);
        check("-t a --platform linux/amd64,linux/arm64", &[r#"oci {"name": "a"} File("a.tar")"#]);
        check("-t r/a --push", &[r#"image {"name": "r/a", "push": "true"} None"#]);
        check("-t a -o type=oci,dest=x.tar", &[r#"oci {"name": "a"} File("x.tar")"#]);
        check("-o out", &[r#"local {} Dir("out")"#]);
        check("--push", &["--push needs a name: -t REGISTRY/NAME"]);
        check("-o foo=bar", &["--output requires type=<type>"]);
    }

    #[test]
    fn a_file_appears_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        std::fs::write(&path, "old").unwrap();
        let product = Product::new(output("docker", &[("dest", &shown(&path)), ("name", "x")]).unwrap());
        product.open().unwrap();
        product.discard();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        product.open().unwrap();
        product.keep().unwrap();
        let want =
            format!("x -> {0} (docker archive, sha256:aa, 0B); use it: docker load -i {0}", path.display());
        assert_eq!(product.line(Some("sha256:aa")).unwrap(), want);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
