//! The editor: vim with somebody who types, and never stops.
//!
//! A session opens the text and makes some edits per second. A pass ends with saving, and what was
//! saved is compared with the [`Document`]; after some passes a new session begins, with the text as it
//! was. Keys go into vim's standard input in bursts as fingers would send them, the screen that vim
//! draws is read and thrown away. After each edit vim is made to write a line into a named pipe: only
//! then the edit counts, and how long that took is the lag.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use super::Reporter;
use super::document::{Document, Draw};
use super::options::ApplicationOptions;
use super::passes::Pass;
use super::program::{ApplicationError, command, outside, read_text};

const TEXT: &str = "/material/text.txt";
const SAVED: &str = "/tmp/saved.txt";
const ANSWERS: &str = "/tmp/answers";
/// Fingers: so many keys, then so long nothing.
const KEYS_IN_BURST: usize = 8;
const BETWEEN_BURSTS: Duration = Duration::from_millis(10);
/// Vim under emulation opens a text in a second or two.
const ANSWER_SECONDS: u64 = 60;
/// Then vim begins anew: with it the text, which grows by two lines per second.
const PASSES_IN_SESSION: u32 = 50;
/// Before the first edit: no questions that wait for a key, no second's pause at the first change of a
/// text on a read-only disk, no limits that break a line, no changes remembered without end.
const SETTINGS: &str = ":set nomore noreadonly undolevels=100 report=99999 cmdheight=3 \
    directory=/tmp noautoindent textwidth=0 lines=40 columns=100\r";

/// Edits for ever.
///
/// # Errors
/// Vim cannot be started, dies or is silent.
pub(super) fn run(
    options: &ApplicationOptions,
    reporter: &Reporter,
) -> Result<Infallible, ApplicationError> {
    let original = Document::new(&read_text(TEXT)?);
    let mut desk = Desk {
        reporter: reporter.clone(),
        answers: listen()?,
        period: Duration::from_secs(1) / options.edits_per_second,
        pass: options.pass,
        draw: Draw::new(options.seed),
        edits: 0,
        questions: 0,
    };
    loop {
        desk.sit_through(original.clone())?;
    }
}

struct Desk {
    reporter: Reporter,
    answers: Receiver<u64>,
    period: Duration,
    pass: Duration,
    draw: Draw,
    edits: u64,
    questions: u64,
}

impl Desk {
    /// One session, from opening the text to leaving vim.
    fn sit_through(&mut self, mut document: Document) -> Result<(), ApplicationError> {
        let (mut vim, mut keys) = start_vim()?;
        self.send(&mut keys, SETTINGS)?;
        self.ask(&mut keys, "opening the text")?;
        for _ in 0..PASSES_IN_SESSION {
            let pass = self.work_through(&mut document, &mut keys)?;
            self.reporter.pass(pass);
        }
        self.send(&mut keys, ":qa!\r")?;
        let status = vim.wait().map_err(ApplicationError::io("waiting for vim"))?;
        if status.success() {
            return Ok(());
        }
        Err(ApplicationError::Ended { program: "vim", status })
    }

    /// One pass: edit, save, compare.
    fn work_through(
        &mut self,
        document: &mut Document,
        keys: &mut ChildStdin,
    ) -> Result<Pass, ApplicationError> {
        let before = self.edits;
        let start = Instant::now();
        let mut due = start;
        while start.elapsed() < self.pass {
            let edit = document.choose(&mut self.draw);
            document.apply(&edit);
            self.send(keys, &edit.keys())?;
            let lag = self.ask(keys, "an edit")?;
            self.reporter.lag(lag);
            self.edits += 1;
            self.reporter.set_work(self.edits);
            if self.edits == 1 {
                self.reporter.ready(format!("lines={}", document.len()));
            }
            // Somebody who was held up does not type the faster for it.
            due = (due + self.period).max(Instant::now());
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        self.send(keys, &format!(":silent w! {SAVED}\r"))?;
        self.ask(keys, "saving the text")?;
        Ok(Pass { units: self.edits - before, bad: self.compare(document)? })
    }

    fn compare(&self, document: &Document) -> Result<Option<String>, ApplicationError> {
        let saved = std::fs::read(outside(SAVED))
            .map_err(ApplicationError::io("reading what vim has saved"))?;
        let saved = String::from_utf8_lossy(&saved);
        let difference = document.first_difference(&saved);
        Ok(difference.map(|line| {
            let (expected, found) = (document.len(), saved.lines().count());
            let shown: String =
                saved.lines().nth(line - 1).unwrap_or("").chars().take(60).collect();
            format!("saved text differs in line={line} lines={found} of {expected}: {shown:?}")
        }))
    }

    /// Types keys as fingers do.
    fn send(&self, keys: &mut ChildStdin, text: &str) -> Result<(), ApplicationError> {
        for burst in text.as_bytes().chunks(KEYS_IN_BURST) {
            keys.write_all(burst)
                .and_then(|()| keys.flush())
                .map_err(ApplicationError::io("typing"))?;
            thread::sleep(BETWEEN_BURSTS);
        }
        Ok(())
    }

    /// Waits until vim has done all that was typed so far; gives how long it took.
    fn ask(&mut self, keys: &mut ChildStdin, question: &str) -> Result<Duration, ApplicationError> {
        self.questions += 1;
        let number = self.questions;
        let start = Instant::now();
        let command = format!(":call writefile([\"{number}\"],\"{ANSWERS}\")\r");
        keys.write_all(command.as_bytes())
            .and_then(|()| keys.flush())
            .map_err(ApplicationError::io("typing"))?;
        let limit = Duration::from_secs(ANSWER_SECONDS);
        while let Ok(answer) = self.answers.recv_timeout(limit.saturating_sub(start.elapsed())) {
            if answer == number {
                return Ok(start.elapsed());
            }
        }
        let (program, question) = ("vim", question.to_owned());
        Err(ApplicationError::Silent { program, question, seconds: ANSWER_SECONDS })
    }
}

fn start_vim() -> Result<(Child, ChildStdin), ApplicationError> {
    let mut words = command("/usr/bin/vim");
    words.args(["-N", "-u", "NONE", "-i", "NONE", "--not-a-term", TEXT]);
    words.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut vim = words.spawn().map_err(ApplicationError::io("starting vim"))?;
    if let Some(mut screen) = vim.stdout.take() {
        thread::spawn(move || {
            let mut pixels = [0; 4096];
            while matches!(screen.read(&mut pixels), Ok(1..)) {}
        });
    }
    let keys = vim.stdin.take();
    let keys = keys.ok_or_else(|| io::Error::other("no standard input"));
    Ok((vim, keys.map_err(ApplicationError::io("starting vim"))?))
}

/// Makes the named pipe; gives the numbers that vim writes into it.
fn listen() -> Result<Receiver<u64>, ApplicationError> {
    let path = outside(ANSWERS);
    let made = std::process::Command::new("/bin/busybox").arg("mkfifo").arg(&path).status();
    made.map_err(ApplicationError::io("making a named pipe"))?;
    // Open for writing too, so that it has no end when vim closes it.
    let pipe = File::options().read(true).write(true).open(&path);
    let pipe = pipe.map_err(ApplicationError::io("opening the named pipe"))?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let Ok(number) = line.trim().parse::<u64>() else { continue };
            if sender.send(number).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
