//! An agent that a service manager watches: a datagram socket stands for the manager.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process};

use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A folder with an agent's configuration; it goes with this.
struct Host(PathBuf);

impl Host {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("sterna-watched-{}-{number}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let host = Self(folder);
        for words in [&["pki", "init", "pki"][..], &["pki", "issue", "pki", "alpha"]] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_sterna"));
            let made = command.args(words).current_dir(&host.0).output().unwrap();
            assert!(made.status.success(), "{made:?}");
        }
        let text = "[host]\nname = \"alpha\"\nlisten = \"127.0.0.1:0\"\ncontrol = \"sock\"\nstate_dir = \"state\"\n\
                    [tls]\nca = \"pki/alpha/ca-cert.pem\"\ncert = \"pki/alpha/server-cert.pem\"\nkey = \"pki/alpha/server-key.pem\"\n";
        fs::write(host.0.join("sterna.toml"), text).unwrap();
        host
    }

    fn agent(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sterna"));
        command.args(["agent", "--config"]).arg(self.0.join("sterna.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.env_remove("JOURNAL_STREAM").env_remove("STERNA_LOG");
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a manager hears.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { socket, heard: Vec::new() }
    }

    /// Listens until a line has come so often.
    fn wait_for(&mut self, line: &str, times: usize) {
        let begun = Instant::now();
        let mut bytes = [0; 4096];
        while self.count(line) < times {
            assert!(begun.elapsed() < PATIENCE, "{line} never came: {:?}", self.heard);
            // Its time-out is no error.
            if let Ok(length) = self.socket.recv(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                self.heard.extend(text.lines().map(str::to_owned));
            }
        }
    }

    fn count(&self, line: &str) -> usize {
        self.heard.iter().filter(|heard| *heard == line).count()
    }
}

#[test]
fn the_service_manager_is_told_how_it_goes() {
    let host = Host::new();
    let mut manager = Manager::at(&host.path("notify"));
    let mut agent = host.agent();
    agent.env("NOTIFY_SOCKET", host.path("notify")).env("WATCHDOG_USEC", "200000");
    let mut agent = agent.spawn().unwrap();
    manager.wait_for("READY=1", 1);
    assert!(host.path("sock").exists(), "ready means that clients can connect");
    manager.wait_for("STATUS=0 VMs run here, 0 jobs under way", 1);
    manager.wait_for("WATCHDOG=1", 3);
    assert_eq!(manager.count("STOPPING=1"), 0);
    kill_process(Pid::from_child(&agent), Signal::TERM).unwrap();
    manager.wait_for("STOPPING=1", 1);
    assert!(agent.wait().unwrap().success());
}

#[test]
fn without_a_service_manager_nothing_is_missed() {
    let host = Host::new();
    let mut agent = host.agent().env_remove("NOTIFY_SOCKET").spawn().unwrap();
    let begun = Instant::now();
    while !host.path("sock").exists() {
        assert!(begun.elapsed() < PATIENCE && agent.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&agent), Signal::TERM).unwrap();
    assert!(agent.wait().unwrap().success());
}
