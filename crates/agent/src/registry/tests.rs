//! The registry's files: who may write over whom, and what earlier builds left.

use super::*;
use crate::testing::Hosts;

#[tokio::test(flavor = "multi_thread")]
async fn only_the_vm_that_has_the_name_is_stored_or_removed() {
    let hosts = Hosts::new();
    let host = hosts.host("alpha", "");
    let (registry, _) = Registry::open(&host.state_dir()).unwrap();
    let [old, new] = [1, 2].map(|epoch| {
        let mut record = host.record("web");
        record.epoch = sterna_model::Epoch(epoch);
        Vm::new(record, None)
    });
    registry.insert(Arc::clone(&old));
    registry.insert(Arc::clone(&new));
    registry.store(&new).unwrap();
    registry.store(&old).unwrap();
    registry.remove(&old);
    assert!(!registry.replace(&old, Arc::clone(&old)));
    let (_, found) = Registry::open(&host.state_dir()).unwrap();
    let [Found::Vm(record)] = &found[..] else { panic!("{found:?}") };
    assert_eq!(**record, new.record());
    registry.remove(&new);
    assert!(!host.record_path("web").exists() && registry.all().is_empty());
}

#[test]
fn what_cannot_be_read_is_found_damaged_by_its_name() {
    let hosts = Hosts::new();
    let host = hosts.host("alpha", "");
    host.store(&host.record("web"));
    std::fs::copy(host.record_path("web"), host.record_path("copy")).unwrap();
    std::fs::write(host.record_path("mail"), b"").unwrap();
    std::fs::write(host.record_path("-no-name"), b"").unwrap();
    let (_, found) = Registry::open(&host.state_dir()).unwrap();
    let mut damaged = Vec::new();
    for found in found {
        match found {
            Found::Vm(record) => assert_eq!(record.name.as_str(), "web"),
            Found::Damaged(name, why) => damaged.push((name.to_string(), why)),
        }
    }
    damaged.sort();
    let [(copy, of_another), (mail, empty)] = &damaged[..] else { panic!("{damaged:?}") };
    assert_eq!((copy.as_str(), mail.as_str()), ("copy", "mail"));
    assert!(of_another.contains("expected copy, found web"), "{of_another}");
    assert!(empty.contains("mail.json is damaged"), "{empty}");
}

#[test]
fn records_of_earlier_builds_are_read() {
    let text = r#"{"name":"web","uuid":"0a1b2c3d-0000-4111-8222-ffffffffffff","epoch":3,
        "definition":["qemu"],"directory":"/","argv":["qemu"],"process":{"pid":7,"start_time":9},
        "agent_qmp":"/a","user_qmp":null,"serial":null,"log":"/l","owner":{"is":"unknown","job":"job-1"}}"#;
    let record: Record = serde_json::from_str(text).unwrap();
    let job = Some("job-1".parse().unwrap());
    assert_eq!(record.owner, Owner::Unknown { job: job.clone(), why: String::new() });
    assert_eq!((record.leaving.as_ref(), record.previous.as_ref()), (None, None));
    assert_eq!(record.job_of_interest(), job.as_ref());
    assert_eq!(record.process, Some(ProcessId { pid: 7, start_time: 9, boot: None }));
    let text = text.replace(r#"{"is":"unknown","job":"job-1"}"#, r#"{"is":"here"}"#);
    let record: Record = serde_json::from_str(&text).unwrap();
    let mut record = record;
    record.process =
        Some(ProcessId { pid: 7, start_time: 9, boot: Some(sterna_model::Uuid([7; 16])) });
    let again: Record = serde_json::from_slice(&serde_json::to_vec(&record).unwrap()).unwrap();
    assert_eq!((record.job_under_way(), &again), (None, &record));
}
