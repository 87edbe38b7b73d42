//! The redis server: filled with values that can be checked, asked from outside, read by ourselves.
//!
//! A pass reads every value once over the loopback and checks it: a value must be one of its key, and
//! its sequence must not go back. Writers from outside keep to the format of [`value`].
//!
//! [`value`]: super::value

use std::convert::Infallible;
use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::Reporter;
use super::options::ApplicationOptions;
use super::passes::Pass;
use super::program::{ApplicationError, command};
use super::resp::{Reply, read_reply, write_command};
use super::value::{key_name, sequence_in, value_of};

const PORT: u16 = 6379;
/// Nothing is ever written to a disk.
const SERVER: [&str; 14] = [
    "--bind",
    "0.0.0.0",
    "--protected-mode",
    "no",
    "--save",
    "",
    "--appendonly",
    "no",
    "--daemonize",
    "no",
    "--dir",
    "/tmp",
    "--logfile",
    "/tmp/redis.log",
];
const START_LIMIT: Duration = Duration::from_secs(60);
/// A server that hangs for longer is damaged.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Commands that are under way at once while the server is filled.
const FILL_AHEAD: u32 = 64;
/// How often the server is asked for its count of commands.
const COUNT_PERIOD: Duration = Duration::from_millis(50);
/// Values that are read at once.
const READ_AT_ONCE: u32 = 32;

/// Serves for ever.
///
/// # Errors
/// The server cannot be started, dies or answers nonsense.
pub(super) fn run(
    options: &ApplicationOptions,
    reporter: &Reporter,
) -> Result<Infallible, ApplicationError> {
    let start = Instant::now();
    let mut server = command("/usr/bin/redis-server");
    server.args(SERVER).stdin(Stdio::null()).stdout(Stdio::null());
    let mut server = server.spawn().map_err(ApplicationError::io("starting redis-server"))?;
    let mut client = Client::connect(&mut server)?;
    client.fill(options.keys)?;
    let fill_ms = start.elapsed().as_millis();
    reporter.set_work(client.commands_processed()?);
    reporter.ready(format!("keys={} port={PORT} fill={fill_ms}ms", options.keys));
    let mut check = Check { sequences: vec![0; options.keys as usize], bad: None };
    loop {
        let pass = client.read_all(&mut check, options.pass, reporter)?;
        reporter.pass(pass);
    }
}

/// What is known of the values.
struct Check {
    sequences: Vec<u32>,
    /// The first bad one of this pass.
    bad: Option<String>,
}

impl Check {
    fn value(&mut self, key: u32, reply: &Reply) {
        let known = &mut self.sequences[key as usize];
        let found = match reply {
            Reply::Bulk(Some(bytes)) => sequence_in(key, bytes).map_err(|error| error.to_string()),
            other => Err(format!("expected a value, found {other:?}")),
        };
        let bad = match found {
            Ok(sequence) if sequence >= *known => {
                *known = sequence;
                return;
            }
            Ok(sequence) => format!("expected={known} or later found={sequence}"),
            Err(words) => words,
        };
        self.bad.get_or_insert(format!("key={key} {bad}"));
    }
}

struct Client {
    writer: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Waits until the server listens.
    fn connect(server: &mut Child) -> Result<Self, ApplicationError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let start = Instant::now();
        loop {
            match TcpStream::connect(address) {
                Ok(stream) => return Self::over(stream),
                Err(error) if start.elapsed() > START_LIMIT => {
                    return Err(ApplicationError::io("connecting to redis-server")(error));
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
            let ended = server.try_wait().map_err(ApplicationError::io("waiting for redis-server"));
            if let Some(status) = ended? {
                return Err(ApplicationError::Ended { program: "redis-server", status });
            }
        }
    }

    fn over(writer: TcpStream) -> Result<Self, ApplicationError> {
        let set_up = || {
            writer.set_nodelay(true)?;
            writer.set_read_timeout(Some(ANSWER_LIMIT))?;
            writer.try_clone()
        };
        let reader = set_up().map_err(ApplicationError::io("connecting to redis-server"))?;
        Ok(Self { writer, reader: BufReader::with_capacity(1 << 16, reader) })
    }

    fn fill(&mut self, keys: u32) -> Result<(), ApplicationError> {
        for first in (0..keys).step_by(FILL_AHEAD as usize) {
            let batch = first..keys.min(first + FILL_AHEAD);
            let mut commands = Vec::new();
            for key in batch.clone() {
                let (name, value) = (key_name(key), value_of(key, 0));
                write_command(&[b"SET", name.as_bytes(), &value], &mut commands);
            }
            self.send(&commands)?;
            for _ in batch {
                match read_reply(&mut self.reader)? {
                    Reply::Text(word) if word == "OK" => {}
                    other => return Err(unexpected("SET", "OK", &other)),
                }
            }
        }
        Ok(())
    }

    /// Reads all values in about `pass`, a few at a time.
    fn read_all(
        &mut self,
        check: &mut Check,
        pass: Duration,
        reporter: &Reporter,
    ) -> Result<Pass, ApplicationError> {
        let keys = u32::try_from(check.sequences.len()).unwrap_or(u32::MAX);
        let pause = pass / (keys / READ_AT_ONCE).max(1);
        let mut due = Instant::now();
        let mut counted = due;
        for first in (0..keys).step_by(READ_AT_ONCE as usize) {
            let batch = first..keys.min(first + READ_AT_ONCE);
            let start = Instant::now();
            self.read_some(batch, check)?;
            reporter.lag(start.elapsed());
            if counted.elapsed() >= COUNT_PERIOD {
                counted = Instant::now();
                reporter.set_work(self.commands_processed()?);
            }
            if let Some(words) = check.bad.take() {
                reporter.bad(words);
            }
            due = (due + pause).max(start);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        reporter.set_work(self.commands_processed()?);
        Ok(Pass { units: u64::from(keys), bad: None })
    }

    fn read_some(
        &mut self,
        keys: std::ops::Range<u32>,
        check: &mut Check,
    ) -> Result<(), ApplicationError> {
        let names: Vec<String> = keys.clone().map(key_name).collect();
        let words: Vec<&[u8]> = std::iter::once("MGET")
            .chain(names.iter().map(String::as_str))
            .map(str::as_bytes)
            .collect();
        let mut command = Vec::new();
        write_command(&words, &mut command);
        self.send(&command)?;
        match read_reply(&mut self.reader)? {
            Reply::Array(values) if values.len() == names.len() => {
                keys.zip(&values).for_each(|(key, value)| check.value(key, value));
                Ok(())
            }
            other => Err(unexpected("MGET", "as many values as keys", &other)),
        }
    }

    fn commands_processed(&mut self) -> Result<u64, ApplicationError> {
        let mut command = Vec::new();
        write_command(&[b"INFO", b"stats"], &mut command);
        self.send(&command)?;
        let reply = read_reply(&mut self.reader)?;
        let Reply::Bulk(Some(text)) = &reply else {
            return Err(unexpected("INFO", "a text", &reply));
        };
        let text = String::from_utf8_lossy(text);
        let count = text.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        let count = count.and_then(|count| count.trim().parse().ok());
        count.ok_or_else(|| unexpected("INFO", "total_commands_processed", &reply))
    }

    fn send(&mut self, commands: &[u8]) -> Result<(), ApplicationError> {
        self.writer.write_all(commands).map_err(ApplicationError::io("sending to redis-server"))
    }
}

fn unexpected(command: &str, expected: &'static str, found: &Reply) -> ApplicationError {
    let found: String = format!("{found:?}").chars().take(120).collect();
    ApplicationError::Unexpected { what: format!("redis: {command}"), expected, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_goes_back_or_is_lost_is_bad() {
        let mut check = Check { sequences: vec![0; 4], bad: None };
        check.value(1, &Reply::Bulk(Some(value_of(1, 3))));
        check.value(1, &Reply::Bulk(Some(value_of(1, 3))));
        assert_eq!(check.bad, None);
        check.value(1, &Reply::Bulk(Some(value_of(1, 2))));
        assert_eq!(check.bad.take().unwrap(), "key=1 expected=3 or later found=2");
        for reply in
            [Reply::Bulk(None), Reply::Bulk(Some(value_of(2, 9))), Reply::Array(Vec::new())]
        {
            check.value(1, &reply);
            assert!(check.bad.take().is_some(), "{reply:?}");
        }
    }

    #[test]
    fn reads_commands_from_a_servers_statistics() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut client = Client::over(stream).unwrap();
        let text = "# Stats\r\ntotal_connections_received:1\r\ntotal_commands_processed:42\r\n";
        server.write_all(format!("${}\r\n{text}\r\n$2\r\nno\r\n", text.len()).as_bytes()).unwrap();
        assert_eq!(client.commands_processed().unwrap(), 42);
        assert!(matches!(client.commands_processed(), Err(ApplicationError::Unexpected { .. })));
    }
}
