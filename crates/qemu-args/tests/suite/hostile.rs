//! Descriptions that no honest source sends.

use crate::common::{described, facts, place, policy};
use proptest::prelude::*;
use sterna_model::Refusal;
use sterna_qemu_args::{Description, MAX_OPTIONS, MAX_VALUE_BYTES, Rebuilt, SourceOption, rebuild};

fn option(name: &str, value: Option<&str>) -> SourceOption {
    SourceOption { name: name.into(), value: value.map(String::from) }
}

fn send(options: Vec<SourceOption>) -> Result<Rebuilt, Vec<Refusal>> {
    let description = Description { options, ..described("", &facts()) };
    rebuild(&description, &policy(&[]), &place())
}

fn code(refused: Result<Rebuilt, Vec<Refusal>>) -> String {
    refused.unwrap_err().remove(0).code
}

#[test]
fn names_are_looked_up_not_written() {
    for name in ["", "-gdb", "gdb\0", "m 1 -gdb", "device\n-gdb", "Device", "no-such"] {
        let refused = code(send(vec![option(name, Some("x"))]));
        assert!(
            refused == "option-unknown" || refused == "argument-malformed",
            "{name:?}: {refused}"
        );
    }
}

#[test]
fn arity_is_ours() {
    assert_eq!(code(send(vec![option("nodefaults", Some("-gdb"))])), "argument-malformed");
    assert_eq!(code(send(vec![option("device", None)])), "argument-malformed");
    // A value that looks like an option is a value for QEMU too.
    let rebuilt = send(vec![option("append", Some("-gdb tcp::1"))]).unwrap();
    assert!(rebuilt.argv.contains(&"-gdb tcp::1".to_string()));
}

#[test]
fn commas_and_newlines_inject_nothing() {
    let json = r#"{"driver":"virtio-blk-pci","serial":"x,romfile=/etc/shadow","drive":"d"}"#;
    let rebuilt = send(vec![option("device", Some(json))]).unwrap();
    assert!(rebuilt.argv.iter().any(|value| value.contains(r#""serial":"x,romfile=/etc/shadow""#)));
    let commas = "virtio-blk-pci,serial=x,,romfile=/etc/shadow";
    let rebuilt = send(vec![option("device", Some(commas))]).unwrap();
    assert!(rebuilt.argv.contains(&commas.to_string()));
    for value in ["e1000\n-gdb", "e1000,id=a\0b", "e1000,id=\u{7f}"] {
        assert_eq!(code(send(vec![option("device", Some(value))])), "argument-malformed");
    }
    let json = r#"{"driver":"e1000","id":"a\nb"}"#;
    assert_eq!(code(send(vec![option("device", Some(json))])), "value-not-allowed");
    let json = r#"{"driver":"virtio-blk-pci","serial":"a\nb"}"#;
    assert_eq!(code(send(vec![option("device", Some(json))])), "value-not-allowed");
}

#[test]
fn an_initial_ram_disk_is_one_file_in_whatever_folder() {
    let of = |folder: &str, name: &str| {
        let options = vec![option("initrd", Some(name))];
        let description = Description { options, ..described("", &facts()) };
        let description = Description { working_dir: Some(folder.into()), ..description };
        rebuild(&description, &policy(&[]), &place())
    };
    assert!(of("/srv/vm", "initrd.img").unwrap().argv.contains(&"/srv/vm/initrd.img".to_string()));
    assert_eq!(code(of("/srv/vm", "one.img,two.img")), "value-not-allowed");
    assert_eq!(code(of("/srv/vm,", "initrd.img")), "value-not-allowed");
}

#[test]
fn json_tricks_are_refused() {
    for value in [
        r#"{"driver":"e1000","romfile":"/etc/shadow"}"#,
        r#"{"driver":"e1000","romfile":["/etc/shadow"]}"#,
        r#"{"driver":["loader"],"file":"/etc/shadow"}"#,
        r#"{"driver":"e1000","driver":"loader"}"#,
        r#"{"driver.x":"e1000"}"#,
        r#"{"driver":"e1000"} -gdb"#,
        "{}",
        "[]",
    ] {
        assert!(send(vec![option("device", Some(value))]).is_err(), "{value}");
    }
    let nested = format!("{}1{}", "{\"file\":".repeat(100_000 / 16), "}".repeat(100_000 / 16));
    assert!(send(vec![option("blockdev", Some(&nested))]).is_err());
}

#[test]
fn paths_do_not_leave_the_roots() {
    for path in [
        "/srv/../etc/shadow",
        "/srv/./../etc/shadow",
        "//etc/shadow",
        "/srvx/a",
        "file:/etc/shadow",
        "file:file:/srv/a",
        "/srv/vm/disks/../../../etc/shadow",
        "~/a",
        "",
    ] {
        assert_eq!(code(send(vec![option("kernel", Some(path))])), "path-not-allowed", "{path}");
        let drive = format!("file.filename={path},format=raw");
        assert!(send(vec![option("drive", Some(&drive))]).is_err(), "{path}");
    }
    let mut from_root = described("", &facts());
    from_root.working_dir = Some("/srv/..".into());
    from_root.options = vec![option("kernel", Some("etc/shadow"))];
    assert_eq!(code(rebuild(&from_root, &policy(&[]), &place())), "path-not-allowed");
}

#[test]
fn the_agents_socket_and_machine_are_ours() {
    let rebuilt = send(vec![
        option("incoming", Some("exec:sh")),
        option("sandbox", Some("off")),
        option("qmp", Some("unix:/run/sterna/vms/web/qmp.sock,server=on,wait=off")),
        option("machine", Some("none")),
        option("serial", Some("file:/x/../../etc/cron.d/qmp.sock")),
    ])
    .unwrap();
    let argv = rebuilt.argv.join(" ");
    assert!(
        !argv.contains("exec:") && !argv.contains("sandbox off") && !argv.contains("none,"),
        "{argv}"
    );
    assert_eq!(argv.matches("/run/sterna/vms/web/qmp.sock").count(), 1);
    assert!(argv.contains("-qmp unix:/run/sterna/vms/web/qmp-2.sock,"), "{argv}");
    assert!(argv.contains("-serial file:/var/log/sterna/web/qmp-3.sock"), "{argv}");
}

#[test]
fn programs_and_machines_are_checked() {
    for program in ["sh", "qemu-system-", "qemu-system-x86_64/../../bin/sh", "../qemu-kvm", ""] {
        let description = Description { program: program.into(), ..described("", &facts()) };
        assert_eq!(
            code(rebuild(&description, &policy(&[]), &place())),
            "program-not-allowed",
            "{program}"
        );
    }
    for machine in ["", "none", "xenfv-4.2", "x-remote", "pc,kernel=/etc/shadow", "pc kernel"] {
        let description = Description { machine_type: machine.into(), ..described("", &facts()) };
        assert_eq!(
            code(rebuild(&description, &policy(&[]), &place())),
            "machine-not-allowed",
            "{machine}"
        );
    }
    for block in ["/objects/x", "a,share=off", "0"] {
        let ram_block = sterna_model::BlockName::new(block.as_bytes()).unwrap();
        let description = Description { ram_block, ..described("", &facts()) };
        assert!(rebuild(&description, &policy(&[]), &place()).is_err(), "{block}");
    }
}

#[test]
fn size_is_bounded() {
    let many = vec![option("nodefaults", None); MAX_OPTIONS + 1];
    assert_eq!(code(send(many.clone())), "description-too-large");
    let text =
        serde_json::to_string(&Description { options: many, ..described("", &facts()) }).unwrap();
    assert!(serde_json::from_str::<Description>(&text).is_err());
    let long = "x".repeat(MAX_VALUE_BYTES + 1);
    assert_eq!(code(send(vec![option("append", Some(&long))])), "description-too-large");
    let large = vec![option("append", Some(&long[1..])); 17];
    assert_eq!(code(send(large)), "description-too-large");
    let refusals = send(vec![option("device", Some("a=1")); MAX_OPTIONS]).unwrap_err();
    assert!(refusals.len() <= 64);
    let distinct =
        (0..MAX_OPTIONS).map(|index| option("device", Some(&format!("d{index}")))).collect();
    assert_eq!(send(distinct).unwrap_err().len(), 64);
}

/// What is added here counts: a VM that arrives can leave again.
#[test]
fn what_arrives_fits_the_next_description() {
    let most = send(vec![option("no-reboot", None); MAX_OPTIONS - 6]).unwrap();
    let mut next = facts();
    next.agent_qmp = Some(most.qmp);
    let argv = [vec!["qemu-system-x86_64".to_string()], most.argv].concat();
    assert_eq!(Description::from_argv(&argv, &next).unwrap().options.len(), MAX_OPTIONS);
    assert_eq!(code(send(vec![option("no-reboot", None); MAX_OPTIONS])), "description-too-large");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 4096, ..ProptestConfig::default() })]

    /// Whatever is sent, no value of the answer names a file outside the roots and the place. The name of a `fw_cfg` entry
    /// looks like a path and is a label for the guest.
    #[test]
    fn no_path_leaves(
        name in "(device|drive|netdev|object|chardev|serial|kernel|fw_cfg|blockdev|machine|vnc|D|qmp|initrd|bios)",
        start in "(|e1000|tap|user|file|null|socket|unix|raw|rng-random|memory-backend-file|name)",
        pairs in prop::collection::vec(
            ("(|file|id|path|romfile|filename|format|driver|script|tftp|mem-path|size|backing.filename|server)",
             "(|/etc/passwd|/srv/[.][.]/etc/x|raw|on|1|a,,file=/etc/x|file:/etc/x)"), 0..4),
    ) {
        let mut value = start;
        for (key, setting) in pairs {
            let join = if key.is_empty() { ":" } else { "=" };
            value.push_str(&format!(",{key}{join}{setting}"));
        }
        if let Ok(rebuilt) = send(vec![option(&name, Some(&value))]) {
            let label = |word: &str| word.starts_with("name=") || word.starts_with("name,");
            let leaks = |word: &String| word.contains("/etc/") && !label(word);
            prop_assert!(!rebuilt.argv.iter().any(leaks), "{:?}", rebuilt.argv);
        }
    }
}
