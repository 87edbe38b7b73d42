//! Processes that outlive their starter: sessions, descriptors, zombies, pids that are used again.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Folder, SOON};
use rustix::process::Signal;
use sterna_host::process::{
    Exit, Process, ProcessError, argv_of, boot_id, exe_of, find_marked, spawn_detached,
    spawn_marked, start_time_of, tail_of,
};

fn shell(folder: &Folder, script: &str) -> Process {
    let args = ["-c", script].map(OsString::from);
    spawn_detached(Path::new("/bin/sh"), &args, Path::new("/"), &folder.file("log"), &[]).unwrap()
}

#[tokio::test]
async fn tells_how_a_process_ended_and_leaves_no_zombie() {
    let folder = Folder::new();
    let process = shell(&folder, "echo said; echo failed >&2; exit 3");
    let (one, other) = tokio::join!(process.exited(), process.exited());
    assert_eq!((one.unwrap(), other.unwrap()), (Exit::Code(3), Exit::Code(3)));
    assert_eq!(process.exit(), Some(Exit::Code(3)));
    assert_eq!(tail_of(&folder.file("log"), 100), "said\nfailed");
    assert_eq!(start_time_of(process.pid()).unwrap(), None, "it was reaped");
    process.signal(Signal::TERM).unwrap();

    let killed = shell(&folder, "sleep 60");
    assert!(!killed.has_exited().unwrap());
    assert_eq!(killed.kill_and_reap(SOON).await.unwrap(), Exit::Signal(9));
    assert_eq!(start_time_of(killed.pid()).unwrap(), None, "it was reaped");
}

#[tokio::test]
async fn the_child_has_its_own_session_and_nothing_of_ours() {
    let folder = Folder::new();
    let kept = std::fs::File::create(folder.file("kept")).unwrap();
    // A descriptor without close-on-exec, as a careless parent leaves them.
    let leaked = std::fs::File::create(folder.file("leaked")).unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let script = format!("echo through >/proc/self/fd/{}; exec sleep 60", kept.as_raw_fd());
    let args = ["-c", &script].map(OsString::from);
    let process = spawn_detached(
        Path::new("/bin/sh"),
        &args,
        Path::new("/"),
        &folder.file("log"),
        &[kept.as_fd()],
    )
    .unwrap();
    let pid = process.pid();
    while exe_of(pid).is_ok_and(|exe| !exe.ends_with("sleep") && !exe.ends_with("busybox")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(!process.has_exited().unwrap(), "{}", tail_of(&folder.file("log"), 500));
    }
    assert_eq!(std::fs::read_to_string(folder.file("kept")).unwrap(), "through\n");
    let mut inherited: Vec<i32> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    inherited.sort_unstable();
    assert_eq!(inherited, [0, 1, 2, kept.as_raw_fd()]);
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let signals = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    assert_eq!(signals("SigBlk:"), 0);
    let pipe = 1 << (Signal::PIPE.as_raw() - 1);
    assert_eq!(signals("SigIgn:") & pipe, 0, "Rust ignores SIGPIPE; others must not inherit that");
    let session = rustix::process::getsid(rustix::process::Pid::from_raw(pid)).unwrap();
    assert_eq!(session.as_raw_nonzero().get(), pid);
    process.kill_and_reap(SOON).await.unwrap();
}

#[tokio::test]
async fn reattaches_to_the_same_process_only() {
    let folder = Folder::new();
    let process = shell(&folder, "exec sleep 60");
    let (pid, start_time) = (process.pid(), process.start_time());
    let again = Process::reattach(pid, start_time).unwrap().unwrap();
    assert_eq!((again.pid(), again.start_time()), (pid, start_time));
    assert!(Process::reattach(pid, start_time + 1).unwrap().is_none(), "a pid used again");
    let boot = boot_id().unwrap();
    assert!(Process::reattach_since(boot, pid, start_time).unwrap().is_some());
    let other = sterna_model::Uuid([7; 16]);
    assert!(Process::reattach_since(other, pid, start_time).unwrap().is_none(), "before a reboot");
    assert!(Process::reattach(0, start_time).unwrap().is_none());
    assert!(Process::reattach(-1, start_time).unwrap().is_none());
    again.signal(Signal::KILL).unwrap();
    // Of two handles one reaps; the other one learns of the end all the same.
    assert!(again.exited().await.is_ok() && process.exited().await.is_ok());
    assert!(Process::reattach(pid, start_time).unwrap().is_none());
}

#[tokio::test]
async fn a_zombie_of_somebody_else_counts_as_ended() {
    // The shell starts a child, says its pid, and becomes a program that reaps nobody.
    let mut parent = Command::new("/bin/sh")
        .args(["-c", "sleep 60 & echo $!; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(parent.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    let pid: i32 = line.trim().parse().unwrap();
    // Wait until the shell has become `cat`: it would reap.
    parent.stdin.as_mut().unwrap().write_all(b"ready\n").unwrap();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    let process = Process::attach(pid).unwrap().unwrap();
    let start_time = process.start_time();
    process.signal(Signal::KILL).unwrap();
    let exit = tokio::time::timeout(SOON, process.exited()).await.unwrap().unwrap();
    assert_eq!(exit, Exit::Unknown);
    assert_eq!(start_time_of(pid).unwrap(), Some(start_time), "the zombie is still there");
    assert!(Process::reattach(pid, start_time).unwrap().is_none());
    assert!(argv_of(pid).unwrap().is_empty());
    drop(parent.stdin.take());
    parent.wait().unwrap();
}

#[tokio::test]
async fn a_dropped_handle_leaves_no_zombie() {
    let folder = Folder::new();
    let process = shell(&folder, "read nothing; sleep 0.2");
    let pid = process.pid();
    drop(process);
    tokio::time::timeout(SOON, async {
        while start_time_of(pid).unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_cannot_be_started_is_named() {
    let folder = Folder::new();
    let program = Path::new("/no/such/program");
    let error = spawn_detached(program, &[], Path::new("/"), &folder.file("log"), &[]).unwrap_err();
    assert!(matches!(&error, ProcessError::Start { program: named, .. } if named == program));
    assert!(error.to_string().contains("/no/such/program"));
    let log = folder.file("absent/log");
    let error = spawn_detached(Path::new("/bin/true"), &[], Path::new("/"), &log, &[]).unwrap_err();
    assert!(matches!(error, ProcessError::Log { path, .. } if path == log));
}

/// The starter here is a process of its own, which ends; what it started goes on and is found again.
#[tokio::test]
async fn survives_its_starter() {
    const ROLE: &str = "STERNA_TEST_STARTER";
    if let Some(path) = std::env::var_os(ROLE) {
        let args = ["60"].map(OsString::from);
        let process = spawn_detached(
            Path::new("/bin/sleep"),
            &args,
            Path::new("/"),
            Path::new("/dev/null"),
            &[],
        );
        let process = process.unwrap();
        let text = format!("{} {}", process.pid(), process.start_time());
        std::fs::write(path, text).unwrap();
        // As an agent that is killed: no destructor runs.
        rustix::process::kill_process(rustix::process::getpid(), Signal::KILL).unwrap();
    }
    let folder = Folder::new();
    let us = std::env::current_exe().unwrap();
    let ended = Command::new(us)
        .args(["--exact", "process::survives_its_starter"])
        .env(ROLE, folder.file("said"))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(!ended.success(), "the starter was killed");
    let said = std::fs::read_to_string(folder.file("said")).unwrap();
    let (pid, start_time) = said.split_once(' ').unwrap();
    let found = Process::reattach(pid.parse().unwrap(), start_time.parse().unwrap()).unwrap();
    let found = found.expect("it goes on without its starter");
    assert!(argv_of(found.pid()).unwrap().ends_with(&["60".into()]));
    assert!(matches!(found.kill_and_reap(SOON).await.unwrap(), Exit::Unknown));
    assert!(Process::reattach(found.pid(), found.start_time()).unwrap().is_none());
}

#[tokio::test]
async fn a_process_is_made_expendable_and_safe_again() {
    let folder = Folder::new();
    let process = shell(&folder, "exec sleep 60");
    let score = || {
        let text = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", process.pid()));
        text.unwrap().trim().parse::<i32>().unwrap()
    };
    let before = score();
    process.set_expendable(true).unwrap();
    assert_eq!(score(), 1000);
    process.set_expendable(false).unwrap();
    assert_eq!(score(), before);
    process.set_expendable(false).unwrap();
    assert_eq!(score(), before, "what is not expendable is left alone");
    assert_eq!(process.kill_and_reap(SOON).await.unwrap(), Exit::Signal(9));
}

#[tokio::test]
async fn a_marked_process_is_found_by_its_mark_alone() {
    let folder = Folder::new();
    let job = format!("job-{}", std::process::id());
    let args = ["60"].map(OsString::from);
    let log = folder.file("log");
    let mark = Some(("STERNA_TEST_JOB", job.as_str()));
    // Not a shell that runs it: while a program begins, its environment is empty.
    let sleep = Path::new("/bin/sleep");
    let process = spawn_marked(sleep, &args, Path::new("/"), &log, &[], mark).unwrap();
    let other = spawn_detached(sleep, &args, Path::new("/"), &log, &[]).unwrap();
    let found = find_marked("STERNA_TEST_JOB", &job).unwrap();
    assert_eq!(found.iter().map(Process::pid).collect::<Vec<_>>(), [process.pid()]);
    assert!(find_marked("STERNA_TEST_JOB", &job[..job.len() - 1]).unwrap().is_empty());
    for process in [process, other] {
        assert_eq!(process.kill_and_reap(SOON).await.unwrap(), Exit::Signal(9));
    }
}
