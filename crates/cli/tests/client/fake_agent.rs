//! An agent that says what a test tells it to, and the real program in front of it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use sterna_api::{Request, Response};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent in a thread of the test.
pub(crate) struct FakeAgent {
    directory: PathBuf,
    requests: Receiver<Request>,
}

/// A client's connection to it.
pub(crate) struct Peer(UnixStream);

impl Peer {
    /// Answers with a line. The client may have gone.
    pub(crate) fn say(&mut self, response: &Response) {
        let mut line = serde_json::to_vec(response).unwrap();
        line.push(b'\n');
        let _ = self.0.write_all(&line);
    }

    /// Answers with anything.
    pub(crate) fn say_bytes(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// Waits until the client has gone.
    pub(crate) fn wait_for_end(&mut self) {
        let mut line = String::new();
        let _ = BufReader::new(&mut self.0).read_line(&mut line);
    }
}

impl FakeAgent {
    /// Starts one; each connection's request is answered by `answer`, in a thread of its own.
    pub(crate) fn start(answer: impl Fn(&Request, Peer) + Clone + Send + 'static) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = env::temp_dir().join(format!("sterna-cli-{}-{number}", process::id()));
        fs::create_dir_all(&directory).unwrap();
        let listener = UnixListener::bind(directory.join("sock")).unwrap();
        let (heard, requests) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let (answer, heard) = (answer.clone(), heard.clone());
                thread::spawn(move || {
                    let mut line = String::new();
                    BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
                    let request: Request = serde_json::from_str(&line).unwrap();
                    let _ = heard.send(request.clone());
                    answer(&request, Peer(stream));
                });
            }
        });
        Self { directory, requests }
    }

    /// Starts one that gives every connection the same answers, and then hangs up.
    pub(crate) fn saying(responses: Vec<Response>) -> Self {
        Self::start(move |_, mut peer| responses.iter().for_each(|response| peer.say(response)))
    }

    /// The program, to be run against it.
    pub(crate) fn sterna(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sterna"));
        command.args(arguments.split_whitespace());
        command.env("STERNA_AGENT", self.directory.join("sock"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, arguments: &str) -> Ran {
        Ran::of(self.sterna(arguments).output().unwrap())
    }

    /// The next request that it heard.
    pub(crate) fn heard(&self) -> Request {
        self.requests.recv_timeout(PATIENCE).unwrap()
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// What the program printed, and its exit code.
pub(crate) struct Ran {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: Option<i32>,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            code: output.status.code(),
        }
    }

    /// The one JSON document on standard output.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// The JSON lines on standard output.
    pub(crate) fn json_lines(&self) -> Vec<serde_json::Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// The program while it runs.
pub(crate) struct Running {
    child: Child,
    stderr: BufReader<process::ChildStderr>,
    heard: String,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr, heard: String::new() }
    }

    /// Reads standard error until a line has that text.
    pub(crate) fn wait_for(&mut self, text: &str) {
        loop {
            let mut line = String::new();
            let length = self.stderr.read_line(&mut line).unwrap();
            assert!(length > 0, "{text:?} never came: {}", self.heard);
            self.heard.push_str(&line);
            if line.contains(text) {
                return;
            }
        }
    }

    pub(crate) fn send(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ran {
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if begun.elapsed() > PATIENCE {
                self.child.kill().unwrap();
                panic!("it does not end: {}", self.heard);
            }
            thread::sleep(Duration::from_millis(5));
        }
        let mut ran = Ran::of(self.child.wait_with_output().unwrap());
        while self.stderr.read_line(&mut self.heard).unwrap() > 0 {}
        ran.stderr = self.heard;
        ran
    }
}
