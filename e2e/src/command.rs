//! Other programs: run with a time limit, output caught, nothing left running.

use std::ffi::OsStr;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Error, Result};

/// How long `ip`, `tc` and their like may take.
const TOOL_LIMIT: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// The output of a program that succeeded.
    ///
    /// # Errors
    /// It did not exit with 0.
    pub fn success(self) -> Result<Self> {
        if self.code == Some(0) {
            return Ok(self);
        }
        let stderr = format!("{}{}", self.stdout, self.stderr);
        Err(Error::Command { line: self.line, code: self.code, stderr })
    }

    /// The one JSON document that standard output must be.
    ///
    /// # Errors
    /// It is none, or more than one.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).map_err(|error| {
            let found = format!("{error} in {:?}; stderr: {}", self.stdout, self.stderr);
            Error::unexpected(self.line.clone(), "one JSON document", found)
        })
    }

    /// Standard output and standard error, for looking up words in lower case.
    #[must_use]
    pub fn words(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr).to_lowercase()
    }
}

/// A program that runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    /// Starts it with its output caught and no input.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let line = line_of(command);
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().map_err(Error::io(format!("starting `{line}`")))?;
        let stdout = child.stdout.take().map(read_in_background);
        let stderr = child.stderr.take().map(read_in_background);
        Ok(Self { line, child, stdout, stderr })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// The system does not say.
    pub fn has_ended(&mut self) -> Result<bool> {
        let ended = self.child.try_wait().map_err(Error::io(format!("waiting for {}", self.line)));
        Ok(ended?.is_some())
    }

    /// As if the user pressed Ctrl-C.
    ///
    /// # Errors
    /// The signal cannot be sent.
    pub fn interrupt(&self) -> Result<()> {
        signal(self.pid(), "INT")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It takes longer than `limit`, and is killed.
    pub fn wait(mut self, limit: Duration) -> Result<Output> {
        let start = Instant::now();
        while !self.has_ended()? {
            if start.elapsed() > limit {
                return Err(self.give_up(limit));
            }
            thread::sleep(POLL);
        }
        let status = self.child.wait().map_err(Error::io(format!("waiting for {}", self.line)))?;
        let (stdout, stderr) = self.take_output();
        Ok(Output { line: self.line.clone(), code: status.code(), stdout, stderr })
    }

    fn give_up(&mut self, after: Duration) -> Error {
        self.kill();
        let (stdout, stderr) = self.take_output();
        let seen = format!("{stdout}{stderr}");
        Error::TimedOut { what: format!("the end of `{}`", self.line), after, seen }
    }

    fn take_output(&mut self) -> (String, String) {
        let text = |reader: Option<JoinHandle<String>>| {
            reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
        };
        (text(self.stdout.take()), text(self.stderr.take()))
    }

    fn kill(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_in_background(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is kept.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs a tool that must succeed; gives its standard output.
///
/// # Errors
/// It cannot be run or fails.
pub fn tool<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String> {
    let mut command = Command::new(tool_path(program));
    command.args(arguments);
    Ok(Running::start(&mut command)?.wait(TOOL_LIMIT)?.success()?.stdout)
}

/// As [`tool`], its arguments in one text between blanks.
///
/// # Errors
/// As for [`tool`].
pub fn tool_line(program: &str, arguments: &str) -> Result<String> {
    tool(program, arguments.split_whitespace())
}

/// The network tools are not in everybody's search path.
fn tool_path(program: &str) -> PathBuf {
    let sbin = PathBuf::from("/usr/sbin").join(program);
    if sbin.exists() { sbin } else { PathBuf::from(program) }
}

/// Sends a signal by its name without SIG.
///
/// # Errors
/// There is no such process.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    // The standard library sends no signals but KILL; the shell's own `kill` is always there.
    tool("sh", ["-c", &format!("kill -{name} {pid}")]).map(drop)
}

/// Whether a process exists and is not just waiting to be reaped.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with(['Z', 'X']));
    state == Some(false)
}

/// Looks again and again until `look` finds something; `what` names it in the error.
///
/// # Errors
/// `look` failed, or found nothing in `limit`.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            let seen = "nothing of the kind".to_owned();
            return Err(Error::TimedOut { what: what.to_owned(), after: limit, seen });
        }
        thread::sleep(POLL);
    }
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_killed() {
        let running = Running::start(Command::new("sleep").arg("100")).unwrap();
        let pid = running.pid();
        let error = running.wait(Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        assert!(!is_alive(pid));
    }

    #[test]
    fn a_failure_shows_what_was_printed() {
        let error = tool("sh", ["-c", "echo no luck >&2; exit 3"]).unwrap_err();
        assert!(error.to_string().contains("Some(3)"), "{error}");
        assert!(error.to_string().contains("no luck"), "{error}");
    }

    #[test]
    fn an_interrupt_arrives() {
        // Not by a shell's trap: one that was started with the signal ignored (as by `make test &`) cannot set it.
        let mut command = Command::new("env");
        command.args(["--default-signal=INT", "sh", "-c"]);
        command.arg("trap 'exit 130' INT; echo set; while :; do sleep 0.05; done");
        let running = Running::start(&mut command).unwrap();
        thread::sleep(Duration::from_millis(300));
        running.interrupt().unwrap();
        assert_eq!(running.wait(Duration::from_secs(5)).unwrap().code, Some(130));
    }
}
