//! The agent under test: a process, its certificates and configuration, and what can be seen of it from outside.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sterna_host::pki;
use sterna_host::tls::TlsIdentity;

use crate::caller::Caller;
use crate::{Result, expect};

/// Who there is. `alpha` and `gamma` may send VMs, `nemo` may only talk, `delta` is not in the configuration.
const HOSTS: [&str; 5] = ["alpha", "beta", "gamma", "delta", "nemo"];
const START_LIMIT: Duration = Duration::from_secs(20);
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
/// An agent without jobs has 2 MiB; pieces of every connection at its limit would be more than this.
const MAX_ANONYMOUS_KIB: u64 = 96 << 10;
/// Descriptors and threads that come and go with timers and the runtime.
const SLACK: usize = 6;

/// An agent that runs; killed, and its folder removed, when dropped.
pub(crate) struct Bench {
    folder: PathBuf,
    pki: PathBuf,
    name: &'static str,
    address: String,
    agent: Child,
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) threads: usize,
    pub(crate) descriptors: usize,
    pub(crate) anonymous_kib: u64,
}

impl Bench {
    /// Starts the agent of `beta`, with these lines in `[limits]`.
    pub(crate) fn start(limits: &str) -> Result<Self> {
        Self::start_as("beta", limits)
    }

    /// Starts the agent of this host.
    pub(crate) fn start_as(name: &'static str, limits: &str) -> Result<Self> {
        let folder = new_folder()?;
        let pki = folder.join("pki");
        pki::init(&pki)?;
        for host in HOSTS {
            pki::issue(&pki, &host.parse()?)?;
        }
        Self::start_in(folder, pki, name, limits)
    }

    /// Starts the agent of another host, which this one's trusts.
    pub(crate) fn start_beside(&self, name: &'static str) -> Result<Self> {
        Self::start_in(new_folder()?, self.pki.clone(), name, "")
    }

    fn start_in(folder: PathBuf, pki: PathBuf, name: &'static str, limits: &str) -> Result<Self> {
        let address = free_address()?;
        let text = configuration(name, &address, &pki.join(name), limits);
        fs::write(folder.join("sterna.toml"), text)?;
        let agent = spawn_agent(&folder)?;
        let bench = Self { folder, pki, name, address, agent };
        bench.wait_for_start()?;
        Ok(bench)
    }

    /// Where the agent listens.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The host's name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The agent's folder: `run` and `state` are in it, and `vm`, where files of VMs may lie.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A host's identity, of the authority that the agent trusts.
    pub(crate) fn identity(&self, host: &str) -> Result<TlsIdentity> {
        Ok(TlsIdentity::load(&pki::files(&self.pki.join(host)))?)
    }

    /// All that the agent has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default()
    }

    /// What the agent holds now.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let proc = PathBuf::from(format!("/proc/{}", self.agent.id()));
        let count = |what: &str| Ok::<_, std::io::Error>(fs::read_dir(proc.join(what))?.count());
        let status = fs::read_to_string(proc.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let anonymous =
            line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no RssAnon")?;
        let anonymous_kib = anonymous.trim().parse()?;
        Ok(Usage { threads: count("task")?, descriptors: count("fd")?, anonymous_kib })
    }

    /// Runs `sterna` against this agent; gives its exit code, and all that it printed.
    pub(crate) fn sterna(&self, words: &[&str]) -> Result<(i32, String)> {
        let mut command = Command::new(sterna_e2e::sterna()?);
        command.args(words).env("STERNA_AGENT", self.folder.join("run/s.sock"));
        let output = command.current_dir(&self.folder).output()?;
        let text = [output.stdout, output.stderr].concat();
        let code = output.status.code().unwrap_or(-1);
        Ok((code, String::from_utf8_lossy(&text).into_owned()))
    }

    /// An honest peer is greeted and heard within this.
    pub(crate) async fn serves(&self, host: &str, limit: Duration) -> Result<()> {
        let identity = self.identity(host)?;
        let served = tokio::time::timeout(limit, async {
            Caller::call(self, &identity, sterna_wire::Role::Control).await?.ping().await
        });
        served.await.map_err(|_| format!("{host} was not served within {limit:?}"))?
    }

    /// The agent is alive, no larger than it may be, has given back what it took since `before`, serves honest peers,
    /// and has said all of this about what happened.
    pub(crate) async fn is_well(&self, before: Usage, said: &[&str]) -> Result<()> {
        self.serves("gamma", Duration::from_secs(5)).await?;
        let start = Instant::now();
        loop {
            let now = self.usage()?;
            let is_back = now.descriptors <= before.descriptors + SLACK
                && now.threads <= before.threads + SLACK;
            let log = self.log();
            if is_back && said.iter().all(|words| log.contains(words)) {
                break;
            }
            if is_back && start.elapsed() > SETTLE_LIMIT {
                // What is missing is told below.
                break;
            }
            if start.elapsed() > SETTLE_LIMIT {
                let open = self.open_files()?;
                return Err(
                    format!("expected about {before:?} again, found {now:?}: {open}").into()
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let now = self.usage()?;
        expect(now.anonymous_kib <= MAX_ANONYMOUS_KIB, "a small agent", &now)?;
        let log = self.log();
        expect(!log.contains("panicked"), "no panic", &log)?;
        for words in said {
            expect(log.contains(words), &format!("{words:?} in the log"), &log)?;
        }
        Ok(())
    }

    /// What the agent's descriptors are, each kind once.
    fn open_files(&self) -> Result<String> {
        let mut open = std::collections::BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.agent.id()))?.flatten() {
            let path = fs::read_link(entry.path()).unwrap_or_default();
            // Sockets and pipes are told apart by their number only.
            let kind = path.to_string_lossy().split('[').next().unwrap_or_default().to_owned();
            *open.entry(kind).or_insert(0_u32) += 1;
        }
        Ok(format!("{open:?}"))
    }

    fn wait_for_start(&self) -> Result<()> {
        let start = Instant::now();
        while self.sterna(&["vm", "list"])?.0 != 0 {
            if start.elapsed() > START_LIMIT {
                return Err(format!("the agent does not start: {}", self.log()).into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // VMs of the tests outlive the agent otherwise. All fail only where there is nothing to end.
        if let Ok((_, list)) = self.sterna(&["vm", "list", "-o", "json"]) {
            let list: serde_json::Value = serde_json::from_str(&list).unwrap_or_default();
            for vm in list.as_array().into_iter().flatten() {
                let _ =
                    self.sterna(&["vm", "stop", vm["name"].as_str().unwrap_or(""), "--grace", "0"]);
            }
        }
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        if std::thread::panicking() {
            eprintln!("--- the agent of {} said:\n{}", self.name, self.log());
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// An address on loopback that nobody listens on.
pub(crate) fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn new_folder() -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = format!("sterna-hostile-{}-{number}", std::process::id());
    let folder = std::env::temp_dir().join(folder);
    fs::create_dir_all(folder.join("vm"))?;
    Ok(folder)
}

fn spawn_agent(folder: &Path) -> Result<Child> {
    let log = fs::File::create(folder.join("agent.log"))?;
    let mut command = Command::new(sterna_e2e::sterna()?);
    command.args(["agent", "--config"]).arg(folder.join("sterna.toml"));
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command.spawn()?)
}

fn configuration(name: &str, address: &str, pki: &Path, limits: &str) -> String {
    let pki = pki.display();
    format!(
        r#"
[host]
name = "{name}"
listen = "{address}"
control = "run/s.sock"
state_dir = "state"
[tls]
ca = "{pki}/ca-cert.pem"
cert = "{pki}/server-cert.pem"
key = "{pki}/server-key.pem"
[peers.alpha]
address = "127.0.0.1:1"
accept = true
[peers.gamma]
address = "127.0.0.1:1"
accept = true
[peers.nemo]
address = "127.0.0.1:1"
[accept]
roots = ["/usr/share", "vm"]
[limits]
{limits}
"#
    )
}
