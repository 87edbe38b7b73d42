//! A host: a namespace with Sterna's agent in it, and the command line to talk to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::artifacts::sterna;
use crate::command::{Output, Running, signal, tool, wait_for};
use crate::configuration::{Authority, HostSetup, LogTo, MemoryLimit, SOCKET, STATE, StateDisk};
use crate::journald;
use crate::memory_group::MemoryGroup;
use crate::world::{Side, World};
use crate::{Error, Result};

/// The agent answers soon or never.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Commands that move nothing.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// A move over a shaped wire.
pub const MOVE_LIMIT: Duration = Duration::from_secs(180);
/// Enough for the journals of some hundred jobs.
const SMALL_DISK_BYTES: u64 = 8 << 20;
/// Lines of an agent's log that a failed test shows.
const TAIL_LINES: usize = 40;

/// An agent that runs; killed when dropped.
#[derive(Debug)]
pub struct Host {
    side: Side,
    sterna: PathBuf,
    namespace: String,
    folder: PathBuf,
    group: Option<MemoryGroup>,
    log: LogTo,
    agent: Option<Child>,
}

impl Host {
    /// Makes the host's certificate and configuration and starts its agent.
    ///
    /// # Errors
    /// `sterna pki` fails, or the agent does not answer.
    pub fn start(world: &World, side: Side, setup: &HostSetup) -> Result<Self> {
        let folder = world.folder().join(side.name());
        let doing = || format!("making {}", folder.display());
        fs::create_dir_all(&folder).map_err(Error::io(doing()))?;
        let sterna = sterna()?;
        let namespace = world.namespace(side);
        let group = match setup.memory {
            MemoryLimit::Machine => None,
            MemoryLimit::Group => Some(MemoryGroup::make(&namespace)?),
        };
        let log = setup.log;
        if log == LogTo::Journal {
            journald::check()?;
        }
        let mut host = Self { side, sterna, namespace, folder, group, log, agent: None };
        let pki = host.issue_certificate(world, setup.authority)?;
        let text = setup.configuration(world, side, &pki);
        fs::write(host.configuration_file(), text).map_err(Error::io("writing sterna.toml"))?;
        if setup.state_disk == StateDisk::Small {
            mount_small_disk(&host.state_dir())?;
        }
        host.restart()?;
        Ok(host)
    }

    /// Which host it is.
    #[must_use]
    pub const fn side(&self) -> Side {
        self.side
    }

    /// The folder of its configuration and state.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the agent keeps its journals and its VM registry.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join(STATE)
    }

    /// The agent's process while it runs.
    #[must_use]
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Leaves agent and QEMUs so many bytes of memory beyond what they have now; without a number, as many as there are.
    ///
    /// # Errors
    /// The host has no [`MemoryLimit::Group`].
    pub fn leave_memory(&self, bytes: Option<u64>) -> Result<()> {
        let none = || Error::unexpected("a host's memory", "a group of its own", "none");
        let group = self.group.as_ref().ok_or_else(none)?;
        bytes.map_or_else(|| group.set_free(), |bytes| group.leave(bytes))
    }

    /// Kills the agent as nothing can prevent.
    pub fn kill9(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            // Both fail only when it has ended already.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    /// Tells the agent to end, as a service manager does, and waits until it has.
    ///
    /// # Errors
    /// It does not end in half a minute.
    pub fn terminate(&mut self) -> Result<()> {
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        signal(agent.id(), "TERM")?;
        let ended = wait_for("the end of the agent", ASK_LIMIT, || {
            agent.try_wait().map_err(Error::io("waiting for the agent"))
        });
        if ended.is_err() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        ended.map(drop)
    }

    /// Starts the agent, again if it ran before, and waits until it answers.
    ///
    /// # Errors
    /// It ends at once or does not answer; the message has the end of its log.
    pub fn restart(&mut self) -> Result<()> {
        self.kill9();
        let mut log = fs::File::options();
        let log = log.create(true).append(true).open(self.log_file());
        let log = log.map_err(Error::io("opening the agent's log"))?;
        let for_stdout = log.try_clone().map_err(Error::io("opening the agent's log"))?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(&self.sterna);
        command.args(["agent", "--config"]).arg(self.configuration_file());
        if self.log == LogTo::Journal {
            command = journald::command(&command, &self.folder)?;
        }
        if let Some(group) = &self.group {
            command = group.command(&command);
        }
        command.stdin(Stdio::null()).stdout(for_stdout).stderr(log);
        self.agent = Some(command.spawn().map_err(Error::io("starting the agent"))?);
        self.wait_until_it_answers()
    }

    /// Runs `sterna` with these words against this host's agent.
    ///
    /// # Errors
    /// It does not end in half a minute.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        self.spawn(words)?.wait(ASK_LIMIT)
    }

    /// As [`Self::run`], not waiting for its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, words: &[&str]) -> Result<Running> {
        Running::start(&mut self.command(words))
    }

    /// As [`Self::run`], with `-o json`; gives the document of a command that succeeded.
    ///
    /// # Errors
    /// It fails, or prints anything but one document.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        self.run(&with_json(words))?.success()?.json()
    }

    /// What `vm show` says.
    ///
    /// # Errors
    /// There is no such VM.
    pub fn vm(&self, name: &str) -> Result<Value> {
        self.json(&["vm", "show", name])
    }

    /// A VM's state in one word; `absent` when the host knows none of that name.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn vm_state(&self, name: &str) -> Result<String> {
        let list = self.json(&["vm", "list"])?;
        let vms = list.as_array().cloned().unwrap_or_default();
        let vm = vms.iter().find(|vm| vm["name"] == name);
        Ok(vm.map_or("absent", |vm| vm["state"].as_str().unwrap_or("no text")).to_owned())
    }

    /// The end of the agent's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// All that the agent has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// All that the agent's journald has, each entry with its fields.
    ///
    /// # Errors
    /// It does not log to one ([`LogTo::Journal`]).
    pub fn journal(&self) -> Result<Vec<Value>> {
        journald::entries(&self.folder)
    }

    /// The configuration's file.
    #[must_use]
    pub fn configuration_file(&self) -> PathBuf {
        self.folder.join("sterna.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join(SOCKET)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.sterna);
        command.args(words).env("STERNA_AGENT", self.socket()).current_dir(&self.folder);
        command
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let answered = wait_for("an answer of the agent", START_LIMIT, || {
            if let Some(Ok(Some(status))) = self.agent.as_mut().map(Child::try_wait) {
                let found = format!("{status}\n{}", self.log_tail());
                return Err(Error::unexpected("the agent", "that it runs", found));
            }
            let asked = self.run(&with_json(&["vm", "list"]))?;
            Ok((asked.code == Some(0)).then_some(()))
        });
        answered.map_err(|error| match error {
            Error::TimedOut { what, after, .. } => {
                Error::TimedOut { what, after, seen: self.log_tail() }
            }
            other => other,
        })
    }

    /// The CA's folder, relative to the configuration's. The CA is made by the first who needs it.
    fn issue_certificate(&self, world: &World, authority: Authority) -> Result<String> {
        let name = match authority {
            Authority::Common => "pki",
            Authority::Foreign => "foreign-pki",
        };
        let folder = world.folder().join(name);
        let folder = folder.to_string_lossy();
        if !Path::new(folder.as_ref()).exists() {
            self.run(&["pki", "init", &folder])?.success()?;
        }
        self.run(&["pki", "issue", &folder, self.side.name()])?.success()?;
        Ok(format!("../{name}/{}", self.side.name()))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            eprintln!("--- the agent of {} said at last:\n{}", self.side.name(), self.log_tail());
        }
    }
}

/// The world's folder goes with all that is mounted below it.
fn mount_small_disk(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io("making the state directory"))?;
    let options = format!("size={SMALL_DISK_BYTES},mode=0755");
    tool("mount", ["-t", "tmpfs", "-o", &options, "small", &folder.to_string_lossy()]).map(drop)
}

/// The words with `-o json` among the options: what follows `--` is not for Sterna.
#[must_use]
pub fn with_json<'w>(words: &[&'w str]) -> Vec<&'w str> {
    let end = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    let mut all = words[..end].to_vec();
    all.extend(["-o", "json"]);
    all.extend(&words[end..]);
    all
}
