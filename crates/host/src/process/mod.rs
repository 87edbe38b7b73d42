//! QEMU processes that outlive the agent.
//!
//! A QEMU is started in a session of its own ([`spawn_detached`]), so that neither a terminal nor the agent's end takes it along. It
//! is remembered by pid, start time and the host's boot; after a restart [`Process::reattach_since`] finds it again, or
//! finds that it is gone, also when its pid has been given to another process, or the host was started anew. From then on
//! everything goes through a pidfd, which always means this very process.
//!
//! A service manager that kills by control group must be told to leave it alone (systemd: `KillMode=process`).

mod inspect;
mod spawn;

pub use inspect::{argv_of, boot_id, cpu_time_of, exe_of, find_marked, start_time_of, tail_of};
pub(crate) use spawn::environment;
pub use spawn::{spawn_detached, spawn_marked};

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_getfd,
    pidfd_open, pidfd_send_signal, waitid,
};
use sterna_model::Uuid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use inspect::Life;

/// The kernel's highest `oom_score_adj`.
const FIRST_TO_BE_ENDED: &str = "1000";

/// What went wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("cannot start {program}: {error}", program = program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Its log file could not be made.
    #[error("cannot open the log file {path}: {error}", path = path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The kernel did not do something with it.
    #[error("cannot {act} process {pid}: {error}")]
    Act {
        /// What was to be done.
        act: &'static str,
        /// With which process.
        pid: i32,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// It did not end in time, though it was killed.
    #[error("process {pid} was killed and has not ended within {waited:?}")]
    Undead {
        /// The process.
        pid: i32,
        /// How long it was waited for.
        waited: Duration,
    },
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was killed, and the kernel has killed a process for want of memory since this one was known: this one, most
    /// likely.
    ShortOfMemory,
    /// It was not our child, so nobody tells us.
    Unknown,
}

/// A process that we started or found.
///
/// Whoever started it has to see it off: as long as the handle lives, [`Process::exited`] or [`Process::has_exited`]
/// reaps it; a handle that is dropped inside a tokio runtime leaves a task that does.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    start_time: u64,
    pidfd: OwnedFd,
    /// How many the kernel had killed for want of memory when it became known.
    memory_kills: Option<u64>,
    /// How it ended, once it has been reaped.
    exit: Mutex<Option<Exit>>,
}

impl Process {
    /// The process `pid` that was started at `start_time` ([`Process::start_time`]) after the host's boot `boot`
    /// ([`boot_id`]), or `None` when it is gone, as all are that were started before another boot.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub fn reattach_since(
        boot: Uuid,
        pid: i32,
        start_time: u64,
    ) -> Result<Option<Self>, ProcessError> {
        let failed = |error| ProcessError::Act { act: "tell the boot of", pid, error };
        if boot_id().map_err(failed)? == boot { Self::reattach(pid, start_time) } else { Ok(None) }
    }

    /// The process `pid` that was started at `start_time` ([`Process::start_time`]) since the host's boot, or `None` when
    /// it is gone.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub fn reattach(pid: i32, start_time: u64) -> Result<Option<Self>, ProcessError> {
        let found = Self::attach(pid)?;
        Ok(found.filter(|process| process.start_time == start_time))
    }

    /// The process that has this pid now, or `None` when there is none, or only what is left of one (a zombie).
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub fn attach(pid: i32) -> Result<Option<Self>, ProcessError> {
        let failed = |error: io::Error| ProcessError::Act { act: "attach to", pid, error };
        let Some(known) = Pid::from_raw(pid).filter(|_| pid > 0) else { return Ok(None) };
        let pidfd = match pidfd_open(known, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // EINVAL: a thread's number, so no process has it as its pid.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        };
        let Some(Life { start_time, ended: false }) = inspect::life_of(pid).map_err(failed)? else {
            return Ok(None);
        };
        let process = Self::new(known, start_time, pidfd);
        // The number may have changed hands between the two questions: then the first holder has ended by now.
        Ok((!process.has_exited()?).then_some(process))
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Makes it the first that the kernel ends where memory runs out, or no more so than this process.
    ///
    /// What somebody else has set in between stays.
    ///
    /// # Errors
    /// When it is gone, or the kernel does not allow it.
    pub fn set_expendable(&self, expendable: bool) -> io::Result<()> {
        let path = format!("/proc/{}/oom_score_adj", self.pid());
        let is_so = fs::read_to_string(&path)?.trim() == FIRST_TO_BE_ENDED;
        match (expendable, is_so) {
            (true, false) => fs::write(path, FIRST_TO_BE_ENDED),
            (false, true) => fs::write(path, fs::read_to_string("/proc/self/oom_score_adj")?),
            _ => Ok(()),
        }
    }

    /// When it started, in clock ticks since the host's boot. With the pid it names a process until the next boot.
    #[must_use]
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// That it has ended; reaps it where it is our child.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub fn has_exited(&self) -> Result<bool, ProcessError> {
        let mut asked = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ended = match poll(&mut asked, Some(&at_once)) {
            Ok(ended) => ended > 0,
            Err(Errno::INTR) => false,
            Err(error) => return Err(self.failed("poll", error.into())),
        };
        if ended {
            self.reap()?;
        }
        Ok(ended)
    }

    /// How it ended, if it has been seen to.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it has ended, and reaps it where it is our child. Many may wait; dropping the future is fine.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub async fn exited(&self) -> Result<Exit, ProcessError> {
        let failed = |error: io::Error| self.failed("wait for", error);
        // A descriptor of its own for each caller: a runtime can watch each only once.
        let own = rustix::io::fcntl_dupfd_cloexec(&self.pidfd, 0).map_err(|e| failed(e.into()))?;
        ended(own).await.map_err(failed)?;
        self.reap()
    }

    /// Sends it a signal. One that has ended already is no error.
    ///
    /// # Errors
    /// When the kernel refuses, which is for lack of rights.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(self.failed("signal", error.into())),
        }
    }

    /// Kills it, waits until it is dead, at most for `deadline`, and reaps it where it is our child. When this returns
    /// `Ok`, the process does not run any more, nor will it ever.
    ///
    /// # Errors
    /// [`ProcessError::Undead`] when it is not dead in time; otherwise when the kernel refuses.
    pub async fn kill_and_reap(&self, deadline: Duration) -> Result<Exit, ProcessError> {
        self.signal(Signal::KILL)?;
        tokio::time::timeout(deadline, self.exited())
            .await
            .unwrap_or(Err(ProcessError::Undead { pid: self.pid(), waited: deadline }))
    }

    /// Our own hand on a socket that the process holds, by the socket's inode ([`inode_of`]); `None` when it holds none
    /// such.
    ///
    /// # Errors
    /// When the kernel refuses: that takes the same user with ptrace rights, or root.
    pub fn socket(&self, inode: u64) -> Result<Option<OwnedFd>, ProcessError> {
        let found = inspect::socket_of(self.pid(), inode);
        let found = found.map_err(|error| self.failed("list the descriptors of", error))?;
        let Some(number) = found else { return Ok(None) };
        let taken = pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty())
            .map_err(|error| self.failed("take a descriptor of", error.into()))?;
        // The number may have changed hands between the two questions.
        Ok(inode_of(&taken).ok().filter(|found| *found == inode).map(|_| taken))
    }

    /// A child of ours that nobody has reaped, so that its number is still its own, whether it has ended or not.
    fn of_child(pid: i32) -> io::Result<Self> {
        let gone = || io::Error::from(Errno::SRCH);
        let known = Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(gone)?;
        let pidfd = pidfd_open(known, PidfdFlags::empty())?;
        let start_time = inspect::start_time_of(pid)?.ok_or_else(gone)?;
        Ok(Self::new(known, start_time, pidfd))
    }

    fn new(pid: Pid, start_time: u64, pidfd: OwnedFd) -> Self {
        let memory_kills = inspect::memory_kills();
        Self { pid, start_time, pidfd, memory_kills, exit: Mutex::new(None) }
    }

    fn reap(&self) -> Result<Exit, ProcessError> {
        // Held over the call, so that of two callers the second finds what the first one learnt.
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exit) = *exit {
            return Ok(exit);
        }
        let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let learnt = match waitid(WaitId::PidFd(self.pidfd.as_fd()), how) {
            Ok(Some(status)) => exit_of(&status, self.memory_kills),
            // Not to be reaped just yet (a tracer holds it): dead all the same, and to be asked about again.
            Ok(None) => return Ok(Exit::Unknown),
            Err(Errno::CHILD) => Exit::Unknown,
            Err(error) => return Err(self.failed("reap", error.into())),
        };
        *exit = Some(learnt);
        Ok(learnt)
    }

    fn failed(&self, act: &'static str, error: io::Error) -> ProcessError {
        ProcessError::Act { act, pid: self.pid(), error }
    }
}

/// What tells a socket from all others of this host.
///
/// # Errors
/// When the kernel does not say.
pub fn inode_of(socket: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(socket)?.st_ino)
}

impl AsFd for Process {
    /// The pidfd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit().is_some() || self.has_exited().unwrap_or(true) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let Ok(pidfd) = rustix::io::fcntl_dupfd_cloexec(&self.pidfd, 0) else { return };
        let (pid, start_time) = (self.pid, self.start_time);
        if is_our_child(&pidfd) {
            runtime.spawn(async move {
                let left = LeftOver { pid, start_time, pidfd };
                left.see_off().await;
            });
        }
    }
}

/// A child whose handle was dropped while it ran.
struct LeftOver {
    pid: Pid,
    start_time: u64,
    pidfd: OwnedFd,
}

impl LeftOver {
    async fn see_off(self) {
        let Self { pid, start_time, pidfd } = self;
        if let Ok(pidfd) = ended(pidfd).await {
            let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let reaped = waitid(WaitId::PidFd(pidfd.as_fd()), how);
            tracing::debug!(?pid, start_time, ?reaped, "a process without a handle ended");
        }
    }
}

/// Waits until the process of a pidfd has ended. It stays readable from then on.
async fn ended(pidfd: OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: an `OwnedFd` is open, and is the same descriptor, until it is dropped; the `AsyncFd` owns it.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
    watched.readable().await?.retain_ready();
    Ok(watched.into_inner())
}

fn is_our_child(pidfd: &OwnedFd) -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::PidFd(pidfd.as_fd()), look).is_ok()
}

fn exit_of(status: &WaitIdStatus, memory_kills_before: Option<u64>) -> Exit {
    let kernel_kills = || {
        let counts = inspect::memory_kills().zip(memory_kills_before);
        counts.is_some_and(|(now, before)| now > before)
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) if signal == Signal::KILL.as_raw() && kernel_kills() => {
            Exit::ShortOfMemory
        }
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Unknown,
    }
}
