//! Real QEMUs for the tests: started, spoken to, and gone at the end of the test.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sterna_host::process::{Process, spawn_detached, tail_of};
use sterna_host::qmp::Qmp;

/// Enough for anything that should work at all on a slow machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A folder that is removed with its content.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("sterna-host-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The QEMU to test with: `STERNA_QEMU` or the one on the path. Without one the test is skipped, loudly, but never in CI.
pub(crate) fn qemu() -> Option<PathBuf> {
    let named = std::env::var_os("STERNA_QEMU").map(PathBuf::from);
    let on_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|dir| dir.join("qemu-system-x86_64")).find(|p| p.exists())
    };
    let found = named.or_else(on_path);
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has no QEMU");
        eprintln!("SKIPPED: no qemu-system-x86_64 here, so nothing was tested");
    }
    found
}

/// A QEMU that runs until it is dropped.
pub(crate) struct Vm {
    pub(crate) process: Process,
    pub(crate) qmp: Qmp,
    pub(crate) folder: Folder,
}

impl Vm {
    pub(crate) async fn start(qemu: &Path, arguments: &[&str]) -> Self {
        let folder = Folder::new();
        let (socket, log) = (folder.file("qmp"), folder.file("log"));
        let monitor = format!("unix:{},server=on,wait=off", socket.display());
        let common = ["-accel", "tcg", "-display", "none", "-nodefaults", "-qmp", &monitor];
        let args: Vec<OsString> = common.iter().chain(arguments).map(OsString::from).collect();
        let process = spawn_detached(qemu, &args, Path::new("/"), &log, &[]).unwrap();
        let connected = Qmp::connect(&socket, SOON).await;
        let (qmp, _) = connected.unwrap_or_else(|error| panic!("{error}: {}", tail_of(&log, 2000)));
        Self { process, qmp, folder }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.process.signal(rustix::process::Signal::KILL);
        for _ in 0..500 {
            // Reaps it, so that a test leaves no zombie behind.
            if self.process.has_exited().unwrap_or(true) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
