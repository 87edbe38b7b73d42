//! What QEMU's monitor says of a machine, asked all at once and kept as it was said: the checks are functions of it, and
//! their tests read answers of real QEMUs.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use sterna_host::qmp::{Qmp, QmpError};

const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// The questions: a name, a command, and the path that `qom-list` is asked of.
const QUESTIONS: [(&str, &str, Option<&str>); 12] = [
    ("peripheral", "qom-list", Some("/machine/peripheral")),
    ("peripheral-anon", "qom-list", Some("/machine/peripheral-anon")),
    ("objects", "qom-list", Some("/objects")),
    ("chardev", "query-chardev", None),
    ("block", "query-block", None),
    ("block-jobs", "query-block-jobs", None),
    ("block-exports", "query-block-exports", None),
    ("cpus", "query-cpus-fast", None),
    ("memory-devices", "query-memory-devices", None),
    ("migrate", "query-migrate", None),
    ("status", "query-status", None),
    ("version", "query-version", None),
];

/// The answers, by the questions' names; null where this QEMU does not know the command.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot(Map<String, Value>);

impl Snapshot {
    /// Asks.
    ///
    /// # Errors
    /// When QEMU does not answer, or refuses a question.
    pub(super) async fn take(qmp: &Qmp) -> Result<Self, QmpError> {
        let mut answers = Map::new();
        for (name, command, path) in QUESTIONS {
            let arguments = path.map_or(Value::Null, |path| json!({ "path": path }));
            let answer = match qmp.execute(command, arguments, COMMAND_TIMEOUT).await {
                Err(error) if error.is_unknown_command() => Value::Null,
                answer => answer?,
            };
            answers.insert(name.to_owned(), answer);
        }
        Ok(Self(answers))
    }

    /// The answer to a question; nothing where QEMU does not know the command.
    ///
    /// # Errors
    /// When it is not of the form that the command has.
    pub(super) fn get<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(T::default()),
            Some(answer) => T::deserialize(answer)
                .map_err(|error| format!("its answer about {name} cannot be understood: {error}")),
        }
    }

    #[cfg(test)]
    pub(super) fn of(answers: Map<String, Value>) -> Self {
        Self(answers)
    }

    /// These answers with one of them replaced.
    #[cfg(test)]
    pub(super) fn with(mut self, name: &str, answer: Value) -> Self {
        self.0.insert(name.to_owned(), answer);
        self
    }
}
