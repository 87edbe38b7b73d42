//! What the tests of this crate stand on: agents in temporary folders, and QEMUs that are none: a process that sleeps, and
//! a monitor that answers.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sterna_host::process::{boot_id, start_time_of};
use sterna_migration::journal::Subject;
use sterna_model::{Epoch, Uuid};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::agent::{Agent, greet_peers};
use crate::config::Config;
use crate::journal::{self, Entry, Journal, Story};
use crate::place::Place;
use crate::recovery;
use crate::registry::{ProcessId, Record};
use crate::vm::{Vm, fresh_record};

/// The VM of the tests, at its first host.
pub(crate) const UUID: Uuid = Uuid([7; 16]);

/// Two hosts that trust each other, in a folder that goes with this.
pub(crate) struct Hosts(PathBuf);

impl Hosts {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("sterna-agent-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        sterna_host::pki::init(&folder.join("pki")).unwrap();
        let hosts = Self(folder);
        for host in ["alpha", "beta"] {
            sterna_host::pki::issue(&hosts.0.join("pki"), &host.parse().unwrap()).unwrap();
        }
        hosts
    }

    /// A host that knows these peers: lines of its configuration.
    pub(crate) fn host(&self, name: &'static str, peers: &str) -> Host {
        let folder = self.0.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let pki = self.0.join("pki").join(name);
        let text = format!(
            "[host]\nname = {name:?}\nlisten = \"127.0.0.1:0\"\ncontrol = \"run/sterna.sock\"\n\
             state_dir = \"state\"\n[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n{peers}",
            pki.join("ca-cert.pem"),
            pki.join("server-cert.pem"),
            pki.join("server-key.pem"),
        );
        std::fs::write(folder.join("sterna.toml"), text).unwrap();
        Host { folder }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A host between two runs of its agent.
pub(crate) struct Host {
    folder: PathBuf,
}

impl Host {
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Starts the agent: it recovers, and listens to nobody yet. The one before must be gone.
    pub(crate) async fn start(&self) -> Arc<Agent> {
        let config = Config::load(&self.folder.join("sterna.toml")).unwrap();
        // What an agent of before still does at its end holds the folder's lock for a moment.
        let mut attempts = 0;
        let (agent, found) = loop {
            match Agent::open(config.clone()) {
                Ok(opened) => break opened,
                Err(error) => {
                    attempts += 1;
                    assert!(attempts < 200, "{error}");
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            }
        };
        recovery::recover(&agent, found).await.unwrap();
        agent
    }

    /// A record of a VM on this host, to be stored as it is.
    pub(crate) fn record(&self, name: &str) -> Record {
        let place = Place::of(&self.folder.join("run"), &self.state_dir(), &name.parse().unwrap());
        place.make(None).unwrap();
        let mut record = fresh_record(name.parse().unwrap(), UUID, &place, vec!["qemu".into()]);
        record.epoch = Epoch(4);
        record
    }

    pub(crate) fn store(&self, record: &Record) {
        let path = self.record_path(record.name.as_str());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, serde_json::to_vec(record).unwrap()).unwrap();
    }

    pub(crate) fn record_path(&self, name: &str) -> PathBuf {
        self.state_dir().join("vms").join(format!("{name}.json"))
    }

    pub(crate) fn write_journal(&self, entries: &[Entry]) -> PathBuf {
        drop(Journal::begin(&self.state_dir(), entries).unwrap());
        self.journal_path()
    }

    pub(crate) fn journal_path(&self) -> PathBuf {
        journal::path_of(&self.state_dir(), &"job-1".parse().unwrap())
    }

    pub(crate) fn story(&self) -> Story {
        Journal::read(&self.journal_path()).unwrap().unwrap()
    }
}

/// What the job of the tests is about: the VM `web`, owned in epoch 5 by whoever gets it.
pub(crate) fn subject(peer: &str) -> Subject {
    Subject {
        job: "job-1".parse().unwrap(),
        vm: "web".parse().unwrap(),
        uuid: UUID,
        epoch: Epoch(5),
        peer: peer.parse().unwrap(),
    }
}

pub(crate) fn source_of() -> Entry {
    Entry::SourceOf(subject("beta"), "2026-01-02T03:04:05Z".into())
}

pub(crate) fn destination_of(peer: &str) -> Entry {
    Entry::DestinationOf(subject(peer), "2026-01-02T03:04:05Z".into())
}

/// Lets an agent be reached by its peers; gives where.
pub(crate) async fn listen(agent: &Arc<Agent>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(greet_peers(Arc::clone(agent), listener));
    address
}

pub(crate) fn vm(agent: &Agent, name: &str) -> Arc<Vm> {
    agent.registry.get(&name.parse().unwrap()).unwrap()
}

/// How a job is listed.
pub(crate) fn state_of_job(agent: &Agent) -> String {
    agent.jobs.get(&"job-1".parse().unwrap()).unwrap().view().state
}

/// A process that does nothing, ended with this.
pub(crate) struct Sleeper {
    child: Child,
    start_time: u64,
}

impl Sleeper {
    pub(crate) fn start() -> Self {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        Self { start_time: start_time_of(pid).unwrap().unwrap(), child }
    }

    pub(crate) fn id(&self) -> ProcessId {
        let pid = i32::try_from(self.child.id()).unwrap();
        ProcessId { pid, start_time: self.start_time, boot: boot_id().ok() }
    }

    pub(crate) fn runs(&self) -> bool {
        self.id().find().unwrap().is_some()
    }

    /// Ends it, for a QEMU that died while nobody looked.
    pub(crate) fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // Whoever reaped it meanwhile: only this very process is meant.
        if let Ok(Some(process)) = self.id().find() {
            let _ = process.signal(rustix::process::Signal::KILL);
        }
    }
}

/// A monitor that answers like that of a QEMU in some run state.
#[derive(Clone)]
pub(crate) struct Monitor {
    status: Arc<Mutex<&'static str>>,
    commands: Arc<Mutex<Vec<String>>>,
}

impl Monitor {
    pub(crate) fn listen(path: &Path, status: &'static str) -> Self {
        let monitor = Self { status: Arc::new(Mutex::new(status)), commands: Arc::default() };
        let listener = UnixListener::bind(path).unwrap();
        let serving = monitor.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(client));
            }
        });
        monitor
    }

    pub(crate) fn was_told(&self, command: &str) -> bool {
        self.commands.lock().unwrap().iter().any(|told| told == command)
    }

    async fn serve(self, client: UnixStream) {
        let mut stream = BufReader::new(client);
        let greeting = json!({"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}});
        let mut answer = greeting.to_string();
        loop {
            if stream.write_all(format!("{answer}\r\n").as_bytes()).await.is_err() {
                return;
            }
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let request: Value = serde_json::from_str(&line).unwrap();
            let command = request["execute"].as_str().unwrap_or_default().to_owned();
            let result = self.answer(&command);
            self.commands.lock().unwrap().push(command);
            answer = json!({"return": result, "id": request["id"]}).to_string();
        }
    }

    fn answer(&self, command: &str) -> Value {
        let mut status = self.status.lock().unwrap();
        match command {
            "cont" => *status = "running",
            "query-status" => {
                return json!({"running": *status == "running", "singlestep": false, "status": *status});
            }
            "query-qmp-schema" => return json!([]),
            "query-uuid" => return json!({"UUID": UUID.to_string()}),
            _ => {}
        }
        json!({})
    }
}
