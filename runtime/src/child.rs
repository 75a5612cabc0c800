//! What a new process does on the way to being a step. It is alone in its process, never returns, and ends without
//! running anything of its parent's.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};

use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::ThreadNameSpaceType;

use crate::wire::{self, Answer, AnyPlan, Task};
use crate::{become_step, rootfs, sys};

/// Where the process keeps its socket.
const SOCKET: RawFd = 3;

/// The longest reason for a failure, in characters.
const MAX_REASON: usize = 2000;

/// Why a process did not become what it was to be, for whoever wrote the step.
#[derive(Debug)]
pub(crate) struct Failed(pub(crate) String);

pub(crate) type Outcome<T> = Result<T, Failed>;

/// Says what failed, and how the kernel puts it.
pub(crate) fn failed<E: Into<io::Error>>(what: impl fmt::Display) -> impl FnOnce(E) -> Failed {
    move |error| Failed(format!("{what}: {}", text(&error.into())))
}

/// An error as the rest of the container world writes it: `no such file or directory`.
pub(crate) fn text(error: &io::Error) -> String {
    let text = error.to_string().to_lowercase();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

/// Carries out tasks until it is a step, or nobody is there any more to give tasks.
pub(crate) fn serve(socket: OwnedFd) -> ! {
    let outcome = settle(&socket);
    // Its number is closed by now, or is the one of the value below.
    std::mem::forget(socket);
    let socket = sys::inherited(SOCKET);
    let failed = match outcome.and_then(|()| work(&socket)) {
        Ok(()) => sys::exit_now(0),
        // Names in it come from the step, and a message has a size.
        Err(Failed(message)) => message.chars().take(MAX_REASON).collect(),
    };
    let _ = wire::send(&socket, &Answer::Failed { message: failed }, &[]);
    sys::exit_now(1)
}

/// Gives up everything that is the helper's.
fn settle(socket: &OwnedFd) -> Outcome<()> {
    let what = "cannot settle";
    // Nobody with the same user id, in a container that is joined for one, reads or changes this process.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed(what))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed(what))?;
    sys::put_at(socket.as_fd(), SOCKET).map_err(failed(what))?;
    sys::close_from(SOCKET + 1).map_err(failed(what))?;
    sys::close_on_exec_from(SOCKET).map_err(failed(what))?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").map_err(failed(what))?;
    for fd in 0..=2 {
        sys::put_at(null.as_fd(), fd).map_err(failed(what))?;
    }
    Ok(())
}

fn work(socket: &OwnedFd) -> Outcome<()> {
    loop {
        let received = wire::receive::<Task>(socket).map_err(failed("cannot receive"))?;
        let Some((task, fds)) = received else { return Ok(()) };
        match task {
            Task::Enter => {
                for group in fds {
                    rustix::io::write(&group, b"0").map_err(failed("cannot enter a control group"))?;
                }
                wire::send(socket, &Answer::Entered, &[]).map_err(failed("cannot answer"))?;
            }
            Task::Run => {
                let (plan, stdio, _) = unpack(fds)?;
                let AnyPlan::Container(plan) = plan else { return Err(unexpected()) };
                rootfs::enter(&plan)?;
                become_step::run(&plan.process, Some(&plan.keyring), stdio, socket)?;
            }
            Task::Join { flags } => {
                let (plan, stdio, container) = unpack(fds)?;
                let AnyPlan::Process(plan) = plan else { return Err(unexpected()) };
                let container = container.ok_or_else(unexpected)?;
                let kinds = u32::try_from(flags).map_err(|_| unexpected())?;
                let kinds = ThreadNameSpaceType::from_bits_retain(kinds);
                rustix::thread::move_into_thread_name_spaces(container.as_fd(), kinds)
                    .map_err(failed("cannot enter the container"))?;
                drop(container);
                become_step::run(&plan, None, stdio, socket)?;
            }
        }
    }
}

fn unpack(fds: Vec<OwnedFd>) -> Outcome<(AnyPlan, [OwnedFd; 3], Option<OwnedFd>)> {
    let mut fds = fds.into_iter();
    let (Some(plan), Some(stdin), Some(stdout), Some(stderr)) =
        (fds.next(), fds.next(), fds.next(), fds.next())
    else {
        return Err(unexpected());
    };
    let plan = wire::read_plan(plan).map_err(failed("cannot read what to do"))?;
    Ok((plan, [stdin, stdout, stderr], fds.next()))
}

fn unexpected() -> Failed {
    Failed("cannot make sense of what the daemon wants".to_owned())
}
