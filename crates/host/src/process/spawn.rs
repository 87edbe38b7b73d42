//! Starting a process that outlives us.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::OFlags;
use rustix::io::FdFlags;

use super::{Process, ProcessError};

/// What a process gets of our environment; everything else stays here.
const ENVIRONMENT: [&str; 7] =
    ["HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "QEMU_MODULE_DIR", "TMPDIR", "XDG_RUNTIME_DIR"];

/// The part of our environment that a process gets.
pub(crate) fn environment() -> impl Iterator<Item = (&'static str, OsString)> {
    ENVIRONMENT.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)))
}

/// Starts a program in a session of its own, in `directory`, reading nothing, writing to the log file at `log_path` (made if it is
/// absent, otherwise appended to). It inherits the descriptors in `keep_fds`, under the numbers that they have here, and no
/// others. No signal is blocked, and SIGPIPE, which Rust ignores, is as usual.
///
/// Call it inside a tokio runtime and keep the handle: it is what sees the process off (see [`Process`]).
///
/// # Errors
/// [`ProcessError::Log`] or [`ProcessError::Start`]. That the program started says nothing of what it does next: watch it with
/// [`Process::exited`].
pub fn spawn_detached(
    program: &Path,
    args: &[OsString],
    directory: &Path,
    log_path: &Path,
    keep_fds: &[BorrowedFd<'_>],
) -> Result<Process, ProcessError> {
    spawn_marked(program, args, directory, log_path, keep_fds, None)
}

/// As [`spawn_detached`], with one more variable in its environment, by which [`find_marked`](super::find_marked) finds it
/// though its starter died before it could write its number down.
///
/// # Errors
/// As there.
pub fn spawn_marked(
    program: &Path,
    args: &[OsString],
    directory: &Path,
    log_path: &Path,
    keep_fds: &[BorrowedFd<'_>],
    mark: Option<(&str, &str)>,
) -> Result<Process, ProcessError> {
    let (log, same_log) = open_log(log_path)
        .map_err(|error| ProcessError::Log { path: log_path.to_owned(), error })?;
    let failed = |error| ProcessError::Start { program: program.to_owned(), error };
    let mut command = Command::new(program);
    command.args(args).current_dir(directory).env_clear();
    command.envs(environment()).envs(mark);
    command.stdin(Stdio::null()).stdout(log).stderr(same_log);
    let plan = inheritance(keep_fds).map_err(failed)?;
    let prepare = move || prepare_child(&plan);
    // SAFETY: between fork and exec only system calls that are safe there are made (setsid, fcntl); `prepare_child`
    // allocates nothing, takes no lock and cannot panic.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn().map_err(failed)?;
    let pid = i32::try_from(child.id()).map_err(|error| failed(io::Error::other(error)))?;
    // Not reaped before we do it, so until here the number is its own, even if it has ended already.
    Process::of_child(pid).map_err(failed)
}

fn open_log(path: &Path) -> io::Result<(File, File)> {
    let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?;
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(no_follow)
        .open(path)?;
    let same = log.try_clone()?;
    Ok((log, same))
}

/// What the child does with the descriptors that it is born with: those to keep stay open over the exec, those that somebody opened here,
/// or left us, without close-on-exec do not. A forgotten pipe would otherwise live as long as the guest.
fn inheritance(keep_fds: &[BorrowedFd<'_>]) -> io::Result<Vec<(RawFd, FdFlags)>> {
    let kept: Vec<RawFd> = keep_fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut plan = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse::<RawFd>().ok());
        plan.extend(
            number
                .filter(|number| *number > 2 && !kept.contains(number))
                .map(|number| (number, FdFlags::CLOEXEC)),
        );
    }
    plan.extend(kept.into_iter().map(|number| (number, FdFlags::empty())));
    Ok(plan)
}

/// Runs in the child, between fork and exec: see the SAFETY comment above before changing it.
fn prepare_child(plan: &[(RawFd, FdFlags)]) -> io::Result<()> {
    rustix::process::setsid()?;
    for (number, flags) in plan {
        // SAFETY: the child has one thread, so nobody closes a descriptor while it is borrowed here. Those to keep are
        // open, since the caller of `spawn_detached` lends them; another one may have been closed before the fork, and then
        // the kernel answers EBADF and nothing happens.
        let descriptor = unsafe { BorrowedFd::borrow_raw(*number) };
        let done = rustix::io::fcntl_setfd(descriptor, *flags);
        if flags.is_empty() {
            done?;
        }
    }
    Ok(())
}
