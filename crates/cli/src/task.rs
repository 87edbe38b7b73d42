//! What is to be done: second of the two steps from the command line, where paths become absolute and the control
//! socket is found. Whatever is wrong with the user's surroundings is found here, before anything is begun.

use std::env;
use std::path::{self, Path, PathBuf};

use sterna_api::{MigrateOptions, MigrateRequest, Request};
use sterna_host::dirs::Dirs;
use sterna_model::{HostName, JobId, VmName};

use crate::args::{Cli, Format, Pki, Stream, Vm, Wanted, Word};
use crate::failure::Failure;

/// One call of the program.
#[derive(Debug, PartialEq)]
pub(crate) struct Invocation {
    /// How results are printed.
    pub(crate) format: Format,
    /// What is to be done.
    pub(crate) task: Task,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(crate) enum Task {
    /// Be the agent.
    Agent {
        /// Its configuration, if not the default one.
        config: Option<PathBuf>,
    },
    /// Ask the agent; print what it answers.
    Ask {
        /// The control socket.
        socket: PathBuf,
        /// What is asked.
        request: Request,
    },
    /// Follow a job to its end.
    Job {
        /// The control socket.
        socket: PathBuf,
        /// Which, and why.
        errand: Errand,
    },
    /// Move all VMs away.
    Drain {
        /// The control socket.
        socket: PathBuf,
        /// Where to, and how.
        drain: Drain,
    },
    /// Make a certificate authority.
    PkiInit {
        /// Where.
        directory: PathBuf,
    },
    /// Issue a host's certificates.
    PkiIssue {
        /// Where the authority is.
        directory: PathBuf,
        /// The host.
        host: HostName,
    },
    /// `pki revoke`.
    PkiRevoke {
        /// The authority's directory.
        directory: PathBuf,
        /// The host whose certificates are revoked.
        host: Option<HostName>,
    },
    /// Look into a captured stream.
    StreamInspect {
        /// The file; `-` is standard input.
        file: PathBuf,
    },
    /// Write manual pages.
    Manual {
        /// Where to.
        directory: PathBuf,
    },
    /// Print a shell's completions.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// All VMs are moved away.
#[derive(Debug, PartialEq)]
pub(crate) struct Drain {
    /// What is asked for each, but for its name.
    pub(crate) request: DrainRequest,
    /// So many at a time.
    pub(crate) parallel: usize,
}

/// What is asked for each VM of a drain.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DrainRequest {
    /// A peer's name, or `name=host:port`.
    pub(crate) destination: String,
    /// How.
    pub(crate) options: MigrateOptions,
}

/// Why a job is followed.
#[derive(Debug, PartialEq)]
pub(crate) enum Errand {
    /// It is begun.
    Migrate(MigrateRequest),
    /// It goes on already.
    Watch(JobId),
    /// It follows its VM, and is to hand it over.
    Switch {
        /// The VM.
        name: VmName,
        /// A peer's name, or `name=host:port`.
        destination: Option<String>,
    },
}

impl Invocation {
    /// Makes what was typed into what is to be done.
    ///
    /// # Errors
    /// The surroundings lack something: the working directory cannot be told or is not UTF-8.
    pub(crate) fn from_typed(typed: Cli) -> Result<Self, Failure> {
        let Cli { word, common } = typed;
        let socket = common.agent.unwrap_or_else(|| Dirs::of_this_user().control_socket());
        let ask = |request| Task::Ask { socket: socket.clone(), request };
        let task = match word {
            Word::Pki(Pki::Init { directory }) => Task::PkiInit { directory },
            Word::Pki(Pki::Issue { directory, host }) => Task::PkiIssue { directory, host },
            Word::Pki(Pki::Revoke { directory, host }) => Task::PkiRevoke { directory, host },
            Word::Agent { config } => {
                // What the configuration names is found from where it is.
                let config = config.map(path::absolute).transpose();
                Task::Agent { config: config.map_err(Failure::WorkingDirectory)? }
            }
            Word::Man { directory } => Task::Manual { directory },
            Word::Completions { shell } => Task::Completions { shell },
            Word::Stream(Stream::Inspect { file }) => Task::StreamInspect { file },
            Word::Check { peer } => ask(Request::Check { peer: peer.into() }),
            Word::Vm(vm) => ask(vm_request(vm)?),
            Word::Plan { name, destination, with_disks } => {
                ask(Request::Plan { name, destination: destination.into(), with_disks })
            }
            Word::Follow(typed) => ask(Request::Follow(typed.into())),
            Word::Status { name } => ask(Request::Status { name }),
            Word::Unfollow { name, keep } => ask(Request::Unfollow { name, keep }),
            Word::Switch { name, destination } => {
                let destination = destination.map(Into::into);
                Task::Job { socket, errand: Errand::Switch { name, destination } }
            }
            Word::Jobs => ask(Request::Jobs),
            Word::Cancel { job } => ask(Request::Cancel { job }),
            Word::Report { job } => ask(Request::Report { job }),
            Word::Resolve { job, guest_is } => {
                ask(Request::Resolve { job, guest_is: guest_is.map(Into::into) })
            }
            Word::Watch { job } => Task::Job { socket, errand: Errand::Watch(job) },
            Word::Migrate(typed) => match typed.wanted() {
                Wanted::One(request) => Task::Job { socket, errand: Errand::Migrate(request) },
                Wanted::All(drain) => Task::Drain { socket, drain },
            },
        };
        Ok(Self { format: common.output, task })
    }
}

fn vm_request(vm: Vm) -> Result<Request, Failure> {
    Ok(match vm {
        Vm::Start { name, argv } => {
            let directory = path_text(&working_directory()?)?;
            Request::VmStart { name, argv, directory }
        }
        Vm::Adopt { name, qmp, pid } => {
            // The agent works elsewhere.
            let qmp = path_text(&working_directory()?.join(qmp))?;
            Request::VmAdopt { name, qmp, pid }
        }
        Vm::List => Request::VmList,
        Vm::Show { name } => Request::VmShow { name },
        Vm::Stop { name, grace } => Request::VmStop { name, grace_seconds: grace },
    })
}

fn working_directory() -> Result<PathBuf, Failure> {
    env::current_dir().map_err(Failure::WorkingDirectory)
}

fn path_text(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| Failure::NotText(path.to_owned()))
}
