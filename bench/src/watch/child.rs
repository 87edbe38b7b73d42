//! This program again, as a client in the clients' namespace: a socket has to be opened there.
//!
//! ```text
//! parent: Client::start ... finish        child: begun(), until_finished(), tell(record)
//!   stdin open until finish, stdout: a line once it is at work, at the end the record as JSON
//! ```

use std::io::{Read, Write};
use std::process::{Child, Stdio};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sterna_e2e::{Error, Result, World};

/// A client at work; killed when dropped.
#[derive(Debug)]
pub(super) struct Client {
    name: &'static str,
    child: Child,
}

impl Client {
    /// Starts this program with these words, and waits until it says that it has begun.
    ///
    /// # Errors
    /// It ends before.
    pub(super) fn start(world: &World, name: &'static str, words: &[&str]) -> Result<Self> {
        let program =
            std::env::current_exe().map_err(Error::io("asking for this program's path"))?;
        let mut command = world.command_of_client(&program);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().map_err(Error::io(format!("starting the {name}")))?;
        let mut client = Self { name, child };
        let mut first = [0];
        match client.child.stdout.as_mut().map(|output| output.read_exact(&mut first)) {
            Some(Ok(())) => Ok(client),
            _ => Err(Error::unexpected(name, "an answer of the guest", "none")),
        }
    }

    /// Ends it; gives its record.
    ///
    /// # Errors
    /// It has ended by itself.
    pub(super) fn finish<T: DeserializeOwned>(mut self) -> Result<T> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        if let Some(Err(error)) =
            self.child.stdout.as_mut().map(|output| output.read_to_string(&mut text))
        {
            return Err(Error::io(format!("reading the record of the {}", self.name))(error));
        }
        serde_json::from_str(&text).map_err(|error| Error::unexpected(self.name, "a record", error))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the child: tells the parent that the guest answers.
pub(super) fn begun() {
    // That the parent has gone is no matter here.
    let _ = std::io::stdout().write_all(b"\n").and_then(|()| std::io::stdout().flush());
}

/// In the child: waits until the parent wants the record.
pub(super) fn until_finished() {
    // Whatever comes from there, its end is what counts.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// In the child: gives the parent the record.
///
/// # Errors
/// It is none that JSON can tell.
pub(super) fn tell(record: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(record)
        .map_err(|error| Error::unexpected("a client's record", "JSON", error))?;
    println!("{text}");
    Ok(())
}
