//! What comes over the control socket: a client's requests, and the agent's answers as a client reads them.

use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Value, json};
use sterna_api::{Request, Response};

use crate::mutate::Mutator;
use crate::signature::{scale, skeleton};
use crate::{Made, Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "api",
    about: "requests and answers of the control socket",
    run,
    make,
    mutators: &[Mutator::Json, Mutator::Json],
    tokens: TOKENS,
    max_bytes: 32 << 10,
    borrowed: &[],
};

#[rustfmt::skip]
const TOKENS: &[&[u8]] = &[
    b"do", b"vm-start", b"vm-adopt", b"migrate", b"plan", b"check", b"jobs", b"watch", b"cancel", b"report",
    b"options", b"strategy", b"three-stage", b"compress", b"level", b"bandwidth", b"bytes_per_second", b"type",
    b"value", b"progress", b"error", b"../../x", b"name=host:port", b"NaN", b"1e400",
];

const ERROR_BYTES: usize = 64 << 10;

#[derive(Arbitrary, Debug)]
struct Asked {
    kind: Kind,
    words: Vec<String>,
    number: u64,
    small: u16,
    level: i32,
    rate: Option<u64>,
    switches: [bool; 5],
}

#[derive(Arbitrary, Debug)]
enum Kind {
    VmStart,
    VmAdopt,
    VmList,
    VmShow,
    VmStop,
    Migrate,
    Plan,
    Check,
    Jobs,
    Watch,
    Cancel,
    Report,
    Started,
    Progress,
    Error,
    Text,
    JobList,
}

fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    Ok(Made::valid(Asked::arbitrary(noise)?.value().to_string().into_bytes()))
}

impl Asked {
    fn value(&self) -> Value {
        let words: Vec<_> = self.words.iter().take(20).collect();
        let word = words.first().map_or("", |word| word.as_str());
        let job = format!("job-{}", self.number);
        let [disks, full, detach, dry, is_level] = self.switches;
        match self.kind {
            Kind::VmStart => {
                json!({"do": "vm-start", "name": "web", "argv": words, "directory": word})
            }
            Kind::VmAdopt => {
                json!({"do": "vm-adopt", "name": "web", "qmp": word, "pid": disks.then_some(self.small)})
            }
            Kind::VmList => json!({"do": "vm-list"}),
            Kind::VmShow => json!({"do": "vm-show", "name": "web"}),
            Kind::VmStop => json!({"do": "vm-stop", "name": "web", "grace_seconds": self.number}),
            Kind::Migrate => {
                json!({"do": "migrate", "name": "web", "destination": word, "options": {
                    "strategy": "auto", "with_disks": disks, "max_downtime_ms": self.number, "timeout_seconds": self.number,
                    "bandwidth": self.rate.map(|rate| json!({"bytes_per_second": rate})), "connections": self.small,
                    "compress": if is_level { json!({"level": self.level}) } else { json!("auto") },
                    "verify_full": full, "detach": detach, "dry_run": dry,
                }})
            }
            Kind::Plan => {
                json!({"do": "plan", "name": "web", "destination": word, "with_disks": disks})
            }
            Kind::Check => json!({"do": "check", "peer": word}),
            Kind::Jobs => json!({"do": "jobs"}),
            Kind::Watch => json!({"do": "watch", "job": job}),
            Kind::Cancel => json!({"do": "cancel", "job": job}),
            Kind::Report => json!({"do": "report", "job": job}),
            Kind::Started => json!({"type": "started", "value": {"job": job}}),
            Kind::Progress => json!({"type": "progress", "value": {
                "job": job, "phase": word, "elapsed_ms": self.number, "round": self.small, "percent": 12.5,
                "memory_done_bytes": self.number, "memory_total_bytes": self.number, "remaining_bytes": 0,
                "wire_bytes": 1, "rate_bytes_per_second": 2, "dirty_bytes_per_second": 3, "eta_ms": self.rate,
            }}),
            Kind::Error => json!({"type": "error", "value": {
                "exit_code": self.small % 256, "message": word, "refusals": [{"code": "a", "reason": "b", "remedy": "c"}],
            }}),
            Kind::Text => json!({"type": "text", "value": word}),
            Kind::JobList => json!({"type": "jobs", "value": [{
                "job": job, "vm": "web", "peer": word, "role": "source", "state": "done", "started_at": word,
            }]}),
        }
    }
}

fn run(input: &[u8]) -> Outcome {
    let request = serde_json::from_slice::<Request>(input);
    let response = serde_json::from_slice::<Response>(input);
    let bytes = scale(input.len() as u64);
    match (request, response) {
        (Ok(request), _) => {
            let text = serde_json::to_vec(&request);
            let again = text.and_then(|text| serde_json::from_slice::<Request>(&text));
            assert!(again.is_ok_and(|again| again == request), "a request reads otherwise");
            Outcome::accepted(format!("request {}, {bytes} bytes", name(&format!("{request:?}"))))
        }
        (Err(_), Ok(response)) => {
            let text = serde_json::to_string(&response);
            let Ok(text) = text else {
                super::broken(&"an answer that was read cannot be written")
            };
            let again = serde_json::from_str::<Response>(&text);
            assert!(again.is_ok_and(|again| again.is_last() == response.is_last()), "{text}");
            Outcome::accepted(format!("answer {}, {bytes} bytes", name(&format!("{response:?}"))))
        }
        (Err(request), Err(response)) => {
            let (request, response) = (request.to_string(), response.to_string());
            assert!(!request.is_empty() && request.len() <= ERROR_BYTES);
            let told = if input.starts_with(b"{\"do\"") { request } else { response };
            Outcome::refused(skeleton(&told))
        }
    }
}

/// The variant of a value, out of how it prints.
fn name(debug: &str) -> &str {
    debug.split(|char: char| !char.is_alphanumeric()).next().unwrap_or_default()
}
