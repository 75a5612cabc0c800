use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use tokio::process::{Child, Command};

/// Waits for the end of its input, which is the end of the daemon, however that comes about. Then it kills the
/// first process of every container, and with it the kernel kills the rest; several times, for those that were
/// about to start. The name of the files is this process's own: the next daemon may be up already.
const SCRIPT: &str = r#"trap '' INT TERM HUP
while read -r _; do :; done
for _ in 1 2 3 4 5 6 7 8; do
    for file in "$1"/*/"$2"; do
        pid=
        read -r pid < "$file"
        [ "${pid:-0}" -gt 1 ] && kill -9 "$pid"
    done
    sleep 0.2
done 2>/dev/null
"#;

/// Sees to it that containers end with this process.
#[derive(Debug)]
pub(crate) struct Watcher {
    root: PathBuf,
    pid_name: String,
    child: Mutex<State>,
}

#[derive(Debug)]
enum State {
    NotStarted,
    Started(Child),
    Failed,
}

impl Watcher {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            pid_name: format!("pid-{:016x}", rand::random::<u64>()),
            child: Mutex::new(State::NotStarted),
        }
    }

    /// The name of the file in each bundle that has the number of its first process.
    pub(crate) fn pid_name(&self) -> &str {
        &self.pid_name
    }

    /// Starts the shell, once: a daemon that runs nothing needs none.
    pub(crate) fn start(&self) {
        let mut state = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*state, State::NotStarted) {
            return;
        }
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "sh"]).arg(&self.root).arg(&self.pid_name);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.process_group(0).current_dir("/");
        *state = match command.spawn() {
            Ok(child) => State::Started(child),
            Err(error) => {
                tracing::warn!(%error, "no shell to watch over containers: if this process is killed, they end at its next start");
                State::Failed
            }
        };
    }

    /// Lets the shell end.
    pub(crate) async fn close(&self) {
        let state = std::mem::replace(
            &mut *self.child.lock().unwrap_or_else(PoisonError::into_inner),
            State::NotStarted,
        );
        if let State::Started(mut child) = state {
            // Everything has ended by now, so there is nothing for it to do.
            let _ = child.start_kill();
            let _ = child.wait().await;
        }
    }
}
