//! A real journald for a host's agent: it sees a `/run` and a configuration of its own, so nothing of it reaches the
//! machine's journal, and ends with the agent.
//!
//! The agent is started as systemd starts a service: its standard error is a stream of the journal's (by `systemd-cat`),
//! which `JOURNAL_STREAM` names by device and inode.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::command::tool;
use crate::{Error, Result};

const JOURNALD: &str = "/lib/systemd/systemd-journald";
/// Nothing of the kernel's: neither its log nor its audit, which it would switch on for the whole machine.
const CONFIGURATION: &str = "[Journal]\nStorage=volatile\nAudit=no\nReadKMsg=no\n";
/// `$0` is the host's folder, the rest the agent's command, which enters its network itself: there journald would not find
/// the control groups, and end.
const SCRIPT: &str = r#"
set -e
mount --rbind /run/netns "$0/run/netns"
mount --rbind "$0/run" /run
mount --bind "$0/journald.conf" /etc/systemd/journald.conf
setpriv --pdeathsig KILL JOURNALD &
tries=0
until systemd-cat true 2>/dev/null; do
    tries=$((tries + 1)); [ $tries -lt 100 ] || { echo "journald does not start" >&2; exit 1; }
    sleep 0.05
done
exec systemd-cat sh -c 'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/$$/fd/2) exec "$@"' sh "$@"
"#;

/// What is missing for a journald, if anything is.
pub(crate) fn check() -> Result<()> {
    let needed =
        [JOURNALD, "/etc/systemd/journald.conf", "/etc/machine-id", "/usr/bin/systemd-cat"];
    match needed.into_iter().find(|path| !Path::new(path).exists()) {
        Some(path) => Err(Error::Unavailable(format!("no {path}"))),
        None => Ok(()),
    }
}

/// A command that runs `command` with its standard error connected to a journald of its own.
///
/// # Errors
/// The files that it takes cannot be made.
pub(crate) fn command(command: &Command, folder: &Path) -> Result<Command> {
    let make = || {
        fs::create_dir_all(folder.join("run/log/journal"))?;
        fs::create_dir_all(folder.join("run/netns"))?;
        fs::write(folder.join("journald.conf"), CONFIGURATION)
    };
    make().map_err(Error::io("making what journald takes"))?;
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--propagation", "private", "sh", "-c"]);
    inside.arg(SCRIPT.replace("JOURNALD", JOURNALD)).arg(folder);
    inside.arg(command.get_program()).args(command.get_args());
    Ok(inside)
}

/// What the journal has, each entry with its fields, in order.
///
/// # Errors
/// It cannot be read.
pub(crate) fn entries(folder: &Path) -> Result<Vec<Value>> {
    let journal: PathBuf = folder.join("run/log/journal");
    let arguments = ["--no-pager", "-o", "json", "-D"].map(std::ffi::OsString::from);
    let told = tool("journalctl", arguments.into_iter().chain([journal.into()]))?;
    let entry = |line: &str| {
        serde_json::from_str(line).map_err(|error| Error::unexpected("the journal", "JSON", error))
    };
    told.lines().map(entry).collect()
}
