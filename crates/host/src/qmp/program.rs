//! What a QEMU program can be, asked of it without a guest: its version, machine types and CPU models.
//!
//! QEMU is started with no machine, all questions are written to its monitor on standard input at once, the last of them
//! being `quit`: it ends by itself even if nobody listens any more. Nothing of a VM is touched.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::error::shortened;
use super::{Accelerator, Machine, Qmp, QmpError, Version};

/// It takes a tenth of a second.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes that it may say; it says some tens of thousands.
const MAX_ANSWER_BYTES: u64 = 8 << 20;
/// What identifies a processor beside its features.
const IDENTITY: [&str; 5] = ["vendor", "family", "model", "stepping", "model-id"];

/// Properties of a processor that the machine type or the user decides, not what the host or QEMU has.
#[rustfmt::skip]
const DECIDED: [&str; 13] = [
    "check", "cpuid-0xb", "enforce", "fill-mtrr-mask", "full-cpuid-auto-level", "host-cache-info",
    "hotplugged", "kvm", "l3-cache", "migratable", "realized", "tcg-cpuid", "vmware-cpuid-freq",
];

/// What a QEMU program can be, with one accelerator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Its version.
    pub version: Version,
    /// Its machine types.
    pub machines: Vec<Machine>,
    /// Its CPU models; none where this architecture does not tell.
    pub cpu_models: Vec<CpuModel>,
    /// What a processor is like that takes over all that there is (`max`, and `host` under KVM).
    pub whole_cpu: Option<CpuFeatures>,
}

/// A CPU model that a QEMU knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct CpuModel {
    /// Its name, as `-cpu` takes it.
    pub name: String,
    /// Features of it that this host, or this QEMU, lacks; the guest would run without them.
    pub unavailable_features: Vec<String>,
}

/// What a guest would see of a processor: names of features, and `vendor=...` and the like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures(pub BTreeSet<String>);

/// Why a QEMU program does not tell what it can be.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It could not be run.
    #[error("cannot run {program}: {error}", program = program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It did not end in time.
    #[error("{program} did not answer within {ANSWER_DEADLINE:?}", program = program.display())]
    Silent {
        /// The program.
        program: PathBuf,
    },
    /// It ended without an answer.
    #[error("{program} does not start with -accel {accelerator}: {said}", program = program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The accelerator.
        accelerator: &'static str,
        /// What it said last.
        said: String,
    },
}

impl Accelerator {
    /// Its name, as `-accel` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl Program {
    /// Asks `program` what it can be with `accelerator`.
    ///
    /// # Errors
    /// When it cannot be run, does not start with this accelerator, or does not answer.
    pub async fn ask(program: &Path, accelerator: Accelerator) -> Result<Self, ProgramError> {
        let run = |error| ProgramError::Run { program: program.into(), error };
        let mut command = Command::new(program);
        command.args(["-no-user-config", "-nodefaults", "-display", "none", "-machine", "none"]);
        command.args(["-accel", accelerator.name(), "-qmp", "stdio"]).current_dir("/");
        command.env_clear().envs(crate::process::environment());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().map_err(run)?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let asked = async {
            let mut stdin = stdin;
            if let Some(stdin) = &mut stdin {
                // It may have ended already; then it has said why.
                let _ = stdin.write_all(questions(accelerator).as_bytes()).await;
            }
            // Not closed until QEMU has ended: what it has not read yet would be lost with some versions.
            io::Result::Ok(stdin)
        };
        let conversation = async { tokio::try_join!(asked, read_all(stdout), read_all(stderr)) };
        let finished = tokio::time::timeout(ANSWER_DEADLINE, conversation).await;
        let silent = |_| ProgramError::Silent { program: program.into() };
        let (_, answers, said) = finished.map_err(silent)?.map_err(run)?;
        let _ = tokio::time::timeout(ANSWER_DEADLINE, child.wait()).await;
        Self::from_answers(&answers).ok_or_else(|| ProgramError::Start {
            program: program.into(),
            accelerator: accelerator.name(),
            said: shortened(String::from_utf8_lossy(&said).trim()),
        })
    }

    /// What the answers say; `None` when the first two, which every QEMU has, are not among them.
    fn from_answers(lines: &[u8]) -> Option<Self> {
        let mut answers = lines.split(|byte| *byte == b'\n').filter_map(|line| {
            let line: Value = serde_json::from_slice(line).ok()?;
            (line.get("return").is_some() || line.get("error").is_some()).then_some(line)
        });
        let _negotiated = answers.next()?;
        let version = result(answers.next()?)?;
        let machines = result(answers.next()?)?;
        let cpu_models = answers.next().and_then(result).unwrap_or_default();
        let whole_cpu = answers
            .next()
            .and_then(|mut answer| CpuFeatures::of(&answer["return"]["model"]["props"].take()));
        Some(Self { version, machines, cpu_models, whole_cpu })
    }
}

impl CpuFeatures {
    /// What `query-cpu-model-expansion` says of a model, if it says anything.
    ///
    /// Only what the guest sees counts: not what QEMU sets by the machine type (`x-...`, `legacy-...`, `hv-...` and some
    /// more), nor the second spelling of a name.
    #[must_use]
    pub fn of(properties: &Value) -> Option<Self> {
        let mut features = BTreeSet::new();
        for (name, value) in properties.as_object()? {
            let own = ["x-", "legacy-", "hv-"].iter().any(|start| name.starts_with(start))
                || name.contains('_')
                || DECIDED.contains(&name.as_str());
            if value == &Value::Bool(true) && !own {
                features.insert(shortened(name));
            }
            if IDENTITY.contains(&name.as_str()) {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                features.insert(shortened(&format!("{name}={text}")));
            }
        }
        (!features.is_empty()).then_some(Self(features))
    }
}

impl Qmp {
    /// The CPU models that this QEMU knows.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_cpu_definitions(&self) -> Result<Vec<CpuModel>, QmpError> {
        self.ask("query-cpu-definitions", Value::Null).await
    }

    /// What a guest sees of a processor of this model, if QEMU tells.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn expand_cpu(&self, model: &str) -> Result<Option<CpuFeatures>, QmpError> {
        let arguments = json!({ "type": "full", "model": { "name": model } });
        let mut expanded: Value = self.ask("query-cpu-model-expansion", arguments).await?;
        Ok(CpuFeatures::of(&expanded["model"]["props"].take()))
    }
}

/// What a stream brings up to its end, or up to the limit.
async fn read_all(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_ANSWER_BYTES).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn questions(accelerator: Accelerator) -> String {
    let whole = match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    };
    let expand = json!({ "type": "full", "model": { "name": whole } });
    [
        json!({ "execute": "qmp_capabilities" }),
        json!({ "execute": "query-version" }),
        json!({ "execute": "query-machines" }),
        json!({ "execute": "query-cpu-definitions" }),
        json!({ "execute": "query-cpu-model-expansion", "arguments": expand }),
        json!({ "execute": "quit" }),
    ]
    .iter()
    .map(|question| format!("{question}\n"))
    .collect()
}

fn result<T: DeserializeOwned>(mut answer: Value) -> Option<T> {
    serde_json::from_value(answer.get_mut("return")?.take()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_in_their_order() {
        let lines = br#"{"QMP": {"version": {}, "capabilities": ["oob"]}}
{"return": {}}
{"return": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}}
{"return": [{"name": "pc-i440fx-7.2", "alias": "pc", "deprecated": false}, {"name": "none"}]}
{"return": [{"name": "EPYC", "unavailable-features": ["sha-ni"], "typename": "EPYC-x86_64-cpu"}]}
{"return": {"model": {"name": "max", "props": {"aes": true, "avx2": false, "sse4_1": true, "sse4.1": true,
 "x-migrate-smi-count": true, "legacy-cache": true, "vendor": "AuthenticAMD", "family": 15, "phys-bits": 40}}}}
"#;
        let text = String::from_utf8_lossy(lines).replace(",\n ", ", ");
        let program = Program::from_answers(text.as_bytes()).unwrap();
        assert_eq!(program.version.to_string(), "7.2.22");
        assert_eq!(program.machines[0].alias.as_deref(), Some("pc"));
        assert_eq!(program.cpu_models[0].unavailable_features, ["sha-ni"]);
        let cpu = program.whole_cpu.unwrap().0;
        let found: Vec<&str> = cpu.iter().map(String::as_str).collect();
        assert_eq!(found, ["aes", "family=15", "sse4.1", "vendor=AuthenticAMD"]);
    }

    #[test]
    fn a_qemu_that_tells_less_is_read_as_far() {
        let basic =
            "{\"return\": {}}\n{\"return\": {\"qemu\": {\"major\": 8}}}\n{\"return\": []}\n";
        let unknown = "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}}\n";
        let program = Program::from_answers(format!("{basic}{unknown}{unknown}").as_bytes());
        let program = program.unwrap();
        assert_eq!((program.cpu_models.len(), program.whole_cpu), (0, None));
        assert!(Program::from_answers(basic.as_bytes()).is_some());
    }

    #[test]
    fn nonsense_is_no_program() {
        for lines in
            ["", "{}", "{\"return\": {}}\n{\"return\": 7}\n{\"return\": []}\n", "[[[[", "\0"]
        {
            assert_eq!(Program::from_answers(lines.as_bytes()), None, "{lines:?}");
        }
    }

    #[tokio::test]
    async fn a_program_that_is_no_qemu_is_named() {
        let error = Program::ask(Path::new("/bin/true"), Accelerator::Tcg).await.unwrap_err();
        assert!(matches!(error, ProgramError::Start { .. }), "{error}");
        let error = Program::ask(Path::new("/no/such"), Accelerator::Tcg).await.unwrap_err();
        assert!(matches!(error, ProgramError::Run { .. }), "{error}");
    }
}
