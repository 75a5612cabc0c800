//! What these tests need of the machine.

use std::path::{Path, PathBuf};

use kiln_worker_runc::{Program, RuncOptions};

/// The static busybox, if `runtime` can be tested here. Says so if not; on CI, which promises everything, that
/// is a failure.
#[expect(clippy::print_stdout, reason = "a skip is to be seen")]
pub(crate) fn ready(runtime: &str) -> Option<PathBuf> {
    let busybox = find("busybox");
    let there = find(runtime).or_else(|| (runtime == "builtin").then(PathBuf::new));
    let why = match (&busybox, there, is_root()) {
        (None, _, _) => "busybox is not installed".to_owned(),
        (_, None, _) => format!("{runtime} is not installed"),
        (_, _, false) => "not root".to_owned(),
        _ => return busybox,
    };
    assert!(std::env::var_os("CI").is_none(), "on CI nothing is skipped: {why}");
    println!("skipped: {why}");
    None
}

/// Options for one of the runtimes; the built-in one starts a program of this package.
pub(crate) fn options(root: &Path, runtime: &str) -> RuncOptions {
    let mut options = RuncOptions::new(root);
    options.binary = Some(runtime.to_owned());
    options.helper = Program::At(env!("CARGO_BIN_EXE_kiln-runtime-helper").into());
    options
}

fn find(binary: &str) -> Option<PathBuf> {
    let dirs = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    dirs.iter().map(|dir| Path::new(dir).join(binary)).find(|path| path.exists())
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| status.contains("\nUid:\t0\t0\t"))
}
