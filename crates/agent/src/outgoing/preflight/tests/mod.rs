//! What is refused, by the answers of real QEMUs: 7.2.22 and 10.0.2, started with [`ARGV`], then with devices plugged in and
//! out and images changed; and with devices that cannot move.

use serde_json::{Map, Value, json};
use sterna_host::qmp::{Accelerator, MemoryBackend};
use sterna_model::{BlockName, ByteCount, Refusal};
use sterna_qemu_args::{Description, RunningFacts};

use super::snapshot::Snapshot;
use super::{formats, guest, hotplug, listed, main_backend};

const ARGV: &str = r#"qemu-system-x86_64 -machine pc -accel tcg -m 64 -smp 1,maxcpus=2 -vga none -serial null -nodefaults
    -drive file=/srv/vm/d1.img,format=raw,if=none,id=disk0 -device virtio-blk-pci,drive=disk0,id=vda
    -drive file=/srv/vm/d2.img,format=raw,if=virtio
    -blockdev driver=file,filename=/srv/vm/d3.img,node-name=f3 -blockdev driver=raw,file=f3,node-name=n3
    -device virtio-blk-pci,drive=n3,id=vdc -netdev user,id=n0 -device virtio-net-pci,netdev=n0 -device virtio-serial-pci
    -chardev null,id=c0 -device virtserialport,chardev=c0,name=a -object iothread,id=io0
    -drive if=none,media=cdrom,id=cd0 -device ide-cd,drive=cd0,id=cd -usb -device usb-tablet -net nic,model=e1000
    -object rng-random,id=r0,filename=/dev/urandom -device {"driver":"virtio-rng-pci","rng":"r0"}
    -drive file=/srv/vm/over.qcow2,if=ide,index=0 -monitor null -parallel null -device usb-mouse,id=um -chardev null,id=c1"#;

const RECORDED: [(&str, &str); 2] =
    [("7.2", include_str!("qemu-7.2.json")), ("10.0", include_str!("qemu-10.0.json"))];

fn recorded(text: &str, state: &str) -> Snapshot {
    let mut all: Map<String, Value> = serde_json::from_str(text).unwrap();
    match all.remove(state) {
        Some(Value::Object(answers)) => Snapshot::of(answers),
        other => panic!("{other:?}"),
    }
}

fn started() -> Snapshot {
    recorded(RECORDED[0].1, "started")
}

fn description(argv: &str) -> Description {
    let argv: Vec<String> = argv.split_whitespace().map(str::to_owned).collect();
    let facts = RunningFacts {
        machine_type: "pc-i440fx-7.2".into(),
        ram_block: BlockName::new(b"pc.ram").unwrap(),
        ram_bytes: ByteCount(64 << 20),
        qemu_version: "7.2.22".into(),
        program_path: None,
        working_dir: Some("/srv/vm".into()),
        agent_qmp: None,
        image_formats: Vec::new(),
    };
    Description::from_argv(&argv, &facts).unwrap()
}

fn of_guest(snapshot: &Snapshot) -> Vec<Refusal> {
    guest::refusals(snapshot, ByteCount(262_136 << 10), Accelerator::Tcg).unwrap()
}

fn of_hotplug(snapshot: &Snapshot, argv: &str) -> Vec<Refusal> {
    hotplug::refusals(snapshot, &description(argv)).unwrap()
}

fn codes(refusals: &[Refusal]) -> Vec<&str> {
    refusals.iter().map(|refusal| refusal.code.as_str()).collect()
}

#[test]
fn a_machine_as_it_was_started_can_be_moved() {
    for (version, text) in RECORDED {
        let snapshot = recorded(text, "started");
        // `-S`: the state before a guest's first instruction.
        assert_eq!(of_guest(&snapshot), [], "{version}");
        assert_eq!(of_hotplug(&snapshot, ARGV), [], "{version}");
    }
}

#[test]
fn what_was_plugged_in_and_out_is_named() {
    for (version, text) in RECORDED {
        let refusals = of_hotplug(&recorded(text, "changed"), ARGV);
        assert_eq!(
            codes(&refusals),
            ["hot-plugged", "hot-unplugged", "medium-changed"],
            "{version}"
        );
        let has = |at: usize, parts: &[&str]| {
            for part in parts {
                assert!(refusals[at].reason.contains(part), "{version}: {part}: {}", refusals[at]);
            }
        };
        has(0, &["device hot0 (virtio-rng-pci)", "device cpu1 (qemu64-x86_64-cpu)"]);
        has(0, &["device without an id (usb-kbd)", "object hot1 (rng-builtin)"]);
        has(0, &["character device hot2"]);
        has(1, &["device um", "object io0", "character device c1"]);
        has(2, &["disk0 has /srv/vm/snap.qcow2", "cd0 has /srv/vm/d4.img"]);
    }
}

#[test]
fn images_that_are_worked_on_are_named() {
    for (version, text) in RECORDED {
        let refusals = of_guest(&recorded(text, "changed"));
        assert_eq!(codes(&refusals), ["block-job-active", "block-export-active"], "{version}");
        assert!(refusals[0].reason.contains("virtio0"), "{}", refusals[0]);
        assert!(refusals[1].reason.contains("ex0"), "{}", refusals[1]);
    }
}

#[test]
fn devices_that_qemu_cannot_move_are_named() {
    for (version, text) in RECORDED {
        let refusals = of_guest(&recorded(text, "blocked"));
        assert_eq!(codes(&refusals), ["qemu-blocked", "memory-device-stays"], "{version}");
        assert!(refusals[0].reason.contains("'ivshmem'"), "{}", refusals[0]);
        assert!(refusals[1].reason.contains("nvdimm (nv0)"), "{}", refusals[1]);
    }
}

#[test]
fn a_guest_at_something_else_is_not_moved() {
    let with = |name: &str, answer: Value| of_guest(&started().with(name, answer));
    for status in ["active", "cancelling", "postcopy-active", "wait-unplug"] {
        assert_eq!(codes(&with("migrate", json!({"status": status}))), ["migration-active"]);
    }
    for status in ["completed", "failed", "cancelled"] {
        assert!(with("migrate", json!({"status": status})).is_empty(), "{status}");
    }
    for status in ["io-error", "shutdown", "guest-panicked", "inmigrate", "of-the-future"] {
        let refusals = with("status", json!({"running": false, "status": status}));
        assert_eq!(codes(&refusals), ["guest-state"], "{status}");
    }
    assert!(with("status", json!({"running": true, "status": "running"})).is_empty());
}

#[test]
fn only_old_qemus_under_tcg_lose_pages() {
    let refused = |version: u32, bytes: u64, accelerator| {
        let answer = json!({"qemu": {"major": version, "minor": 2, "micro": 0}, "package": ""});
        let snapshot = started().with("version", answer);
        !guest::refusals(&snapshot, ByteCount(bytes), accelerator).unwrap().is_empty()
    };
    assert!(refused(7, 256 << 20, Accelerator::Tcg));
    assert!(!refused(7, 262_136 << 10, Accelerator::Tcg));
    assert!(!refused(9, 256 << 20, Accelerator::Tcg));
    assert!(!refused(7, 256 << 20, Accelerator::Kvm));
}

#[test]
fn processors_that_are_gone_are_counted() {
    let argv = ARGV.replace("-smp 1,maxcpus=2", "-smp 2");
    let refusals = of_hotplug(&started(), &argv);
    assert_eq!(codes(&refusals), ["hot-unplugged"]);
    assert!(refusals[0].reason.contains("1 of 2 processors"), "{}", refusals[0]);
}

#[test]
fn a_drive_of_every_machine_may_be_empty_but_not_be_filled() {
    let empty = json!([{"device": "floppy0", "removable": true, "qdev": "/machine/x"}]);
    assert!(of_hotplug(&started().with("block", empty), ARGV).is_empty());
    let filled = json!([{"device": "floppy0", "inserted": {"file": "/srv/vm/x", "drv": "raw"}}]);
    assert_eq!(codes(&of_hotplug(&started().with("block", filled), ARGV)), ["medium-changed"]);
    let ejected = json!([{"device": "disk0", "removable": true}]);
    let refusals = of_hotplug(&started().with("block", ejected), ARGV);
    assert!(refusals[0].reason.contains("disk0 has no medium"), "{refusals:?}");
}

#[test]
fn an_image_is_known_by_any_of_its_names() {
    let file = |file: &str| {
        let answer = json!([{"device": "disk0", "inserted": {"file": file, "drv": "raw"}}]);
        of_hotplug(&started().with("block", answer), ARGV).is_empty()
    };
    assert!(file("/srv/vm/d1.img") && file("d1.img") && file("/srv//vm/./d1.img"));
    assert!(file(
        r#"json:{"driver": "raw", "file": {"driver": "file", "filename": "/srv/vm/d1.img"}}"#
    ));
    assert!(!file("/srv/vm/d2.img") && !file("json:{") && !file("json:[7]") && !file(""));
}

#[test]
fn character_devices_that_qemu_makes_are_its_own() {
    let labels = |labels: &[&str]| {
        let named = ["c0", "c1"].iter().chain(labels).map(|label| json!({"label": label}));
        of_hotplug(&started().with("chardev", named.collect()), ARGV).is_empty()
    };
    assert!(labels(&["serial0", "compat_monitor12", "serial0-base", "c0-base", "gdb"]));
    assert!(!labels(&["serial0x"]) && !labels(&["mine-base"]) && !labels(&["0"]));
}

#[test]
fn formats_that_qemu_found_are_passed_on() {
    let found = formats(&started().get::<Vec<_>>("block").unwrap());
    assert!(found.contains(&("/srv/vm/over.qcow2".into(), "qcow2".into())), "{found:?}");
}

#[test]
fn main_memory_is_what_the_machine_is_bound_to() {
    let backend = |id: &str| MemoryBackend { id: Some(id.into()), ..MemoryBackend::default() };
    let backends = [backend("shm"), backend("pc.ram")];
    let id = |bound: &str| main_backend(&backends, bound).unwrap().id.clone().unwrap();
    assert_eq!(id("/objects/pc.ram"), "pc.ram");
    assert_eq!(id("pc.ram"), "pc.ram");
    assert_eq!((id(""), id("/objects/gone")), ("shm".into(), "shm".into()));
    assert!(main_backend(&[], "pc.ram").is_none());
}

/// A QEMU is not trusted to speak sense, nor to be brief.
#[test]
fn nonsense_is_an_error_and_much_is_cut() {
    for name in ["peripheral", "peripheral-anon", "objects", "chardev", "block", "cpus"] {
        for answer in [json!(7), json!({"a": 1}), json!([7]), json!("x")] {
            let snapshot = started().with(name, answer.clone());
            let error = hotplug::refusals(&snapshot, &description(ARGV)).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }
    for name in ["migrate", "status", "version", "block-jobs", "block-exports", "memory-devices"] {
        let snapshot = started().with(name, json!("x"));
        assert!(guest::refusals(&snapshot, ByteCount(1), Accelerator::Tcg).is_err(), "{name}");
    }
    let many: Vec<Value> =
        (0..5000).map(|n| json!({"name": format!("d{n}\u{1b}"), "type": "child<x>"})).collect();
    let refusals = of_hotplug(&started().with("peripheral", json!(many)), ARGV);
    assert!(refusals[0].reason.len() < 1000 && !refusals[0].reason.contains('\u{1b}'));
    assert!(refusals[0].reason.contains("and 4992 more"), "{}", refusals[0]);
    assert!(listed(["x".repeat(1 << 20)].iter().map(String::as_str)).len() < 200);
}

/// One that does not know a question is asked no more of it.
#[test]
fn an_older_qemu_that_lacks_a_command_is_not_refused_for_it() {
    let snapshot = started().with("block-exports", Value::Null).with("block-jobs", Value::Null);
    assert!(of_guest(&snapshot).is_empty());
}
