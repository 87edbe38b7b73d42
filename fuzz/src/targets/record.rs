//! The VM registry's files.

use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Value, json};
use sterna_agent::stored::read_record;
use sterna_model::VmName;

use crate::mutate::Mutator;
use crate::signature::{scale, skeleton};
use crate::{Made, Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "record",
    about: "the VM registry's files",
    run,
    make,
    mutators: &[Mutator::Json, Mutator::Json],
    tokens: TOKENS,
    max_bytes: 32 << 10,
    borrowed: &[],
};

#[rustfmt::skip]
const TOKENS: &[&[u8]] = &[
    b"name", b"web", b"owner", b"is", b"here", b"incoming", b"moved-to", b"ended", b"lost", b"unknown", b"previous",
    b"leaving", b"process", b"pid", b"boot", b"-1", b"../web", b"job-1",
];

const PATH: &str = "/var/lib/sterna/vms/web.json";

#[derive(Arbitrary, Debug)]
struct Record {
    epoch: u64,
    words: Vec<String>,
    process: Option<(i32, u64, bool)>,
    owner: Owner,
    is_leaving: bool,
    serial: Option<String>,
    previous: Option<Owner>,
}

#[derive(Arbitrary, Debug)]
enum Owner {
    Here,
    Incoming(u8),
    MovedTo(u8),
    Ended,
    Lost,
    Unknown(Option<u8>, String),
}

fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    let record = Record::arbitrary(noise)?;
    let mut value = record.value(&record.owner);
    if let Some(owner) = &record.previous {
        value["previous"] = record.value(owner);
    }
    if record.is_leaving {
        value["leaving"] = json!("job-9");
    }
    Ok(Made::valid(value.to_string().into_bytes()))
}

impl Record {
    fn value(&self, owner: &Owner) -> Value {
        let words: Vec<_> = self.words.iter().take(20).collect();
        let process = self.process.map(|(pid, start, has_boot)| {
            let boot = has_boot.then_some("0a1b2c3d-0000-4111-8222-ffffffffffff");
            json!({"pid": pid, "start_time": start, "boot": boot})
        });
        json!({
            "name": "web", "uuid": "0a1b2c3d-0000-4111-8222-ffffffffffff", "epoch": self.epoch,
            "definition": words, "directory": "/srv", "argv": words, "process": process,
            "agent_qmp": "/run/sterna/vms/web/qmp.sock", "user_qmp": null, "serial": self.serial,
            "log": "/var/lib/sterna/output/web/qemu.log", "owner": owner.value(),
        })
    }
}

impl Owner {
    fn value(&self) -> Value {
        match self {
            Self::Here => json!({"is": "here"}),
            Self::Incoming(job) => json!({"is": "incoming", "job": format!("job-{job}")}),
            Self::MovedTo(job) => {
                json!({"is": "moved-to", "host": "beta", "job": format!("job-{job}")})
            }
            Self::Ended => json!({"is": "ended"}),
            Self::Lost => json!({"is": "lost"}),
            Self::Unknown(job, why) => {
                let job = job.map(|job| format!("job-{job}"));
                json!({"is": "unknown", "job": job, "why": why})
            }
        }
    }
}

fn run(input: &[u8]) -> Outcome {
    let path = Path::new(PATH);
    let Ok(name) = "web".parse::<VmName>() else { super::broken(&"web is no name") };
    match read_record(path, &name, input) {
        Ok(again) => {
            let twice = read_record(path, &name, &again);
            assert!(twice.is_ok_and(|twice| twice == again), "what is written reads otherwise");
            let Ok(value) = serde_json::from_slice::<Value>(&again) else {
                super::broken(&"what is written is no JSON");
            };
            assert_eq!(value["name"], "web", "another VM's record was read");
            let depth = std::iter::successors(Some(&value), |value| value.get("previous")).count();
            let owner = value["owner"]["is"].as_str().unwrap_or_default();
            let bytes = scale(again.len() as u64);
            Outcome::accepted(format!("{owner}, {depth} deep, {bytes} bytes"))
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(PATH), "which file? {text}");
            Outcome::refused(skeleton(&text))
        }
    }
}
