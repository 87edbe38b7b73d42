//! A description that arrives, rebuilt into an argument vector: nothing outside of the allow-list, no path outside of the
//! roots, the same again at the next hop.

use serde_json::Value;
use sterna_model::{BlockName, Refusal};
use sterna_qemu_args::{
    Description, MAX_OPTIONS, MAX_TOTAL_BYTES, Place, Policy, Rebuilt, RunningFacts, rebuild,
};

use super::description_grammar;
use crate::mutate::Mutator;
use crate::signature::{of_error, scale, skeleton};
use crate::{Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "description",
    about: "a VM's description that arrives, rebuilt into arguments",
    run,
    make: description_grammar::make,
    mutators: &[Mutator::Json, Mutator::Json, Mutator::Json],
    tokens: TOKENS,
    max_bytes: 48 << 10,
    borrowed: &[],
};

#[rustfmt::skip]
const TOKENS: &[&[u8]] = &[
    b"device", b"drive", b"blockdev", b"object", b"chardev", b"netdev", b"machine", b"M", b"gdb", b"qmp",
    b"file=/etc/shadow", b",,file=/etc/shadow", b"/srv/../etc/shadow", b"file:/etc/shadow", b"json:{}", b"help",
    b"e1000,romfile=/etc/shadow",
    b"{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}}",
    b"unix:/etc/shadow,server=on", b"unix:/tmp/a.sock,server=on,wait=off", b"file:/tmp/a.log", b"mon:stdio",
    b"memory-backend-file,id=m,size=1G,mem-path=/etc/shadow", b"user,id=n,tftp=/etc,hostfwd=tcp::1-:1",
    b"file.filename=/etc/shadow,format=raw", b"backing.file.filename=/etc/shadow", b"pc,kernel=/etc/shadow",
    b"/proc/self/mem", b"fd=3", b"nographic", b"tap,id=n,ifname=t,script=/etc/shadow", b"exec:sh",
    b"secret,id=s,file=/etc/shadow",
];

const ERROR_BYTES: usize = 16 << 10;
const MAX_REFUSALS: usize = 64;
/// Folders that files may lie in here.
const ROOTS: [&str; 3] = ["/srv", "/usr/share", "/data"];
const SOCKETS: &str = "/run/sterna/vms/web";
const OUTPUT: &str = "/var/log/sterna/web";
/// Options that an argument vector here may have. Kept apart from the crate's own table: it is what the table is held to.
#[rustfmt::skip]
const ALLOWED: &[&str] = &[
    "enable-kvm", "no-reboot", "no-shutdown", "no-hpet", "no-acpi", "no-fd-bootchk", "nodefaults", "usb", "win2k-hack",
    "singlestep", "one-insn-per-tb", "only-migratable", "seed", "vga", "usbdevice", "watchdog", "watchdog-action", "k",
    "kernel", "bios", "action", "boot", "fw_cfg", "msg", "name", "overcommit", "rtc", "smp", "smbios", "mon", "accel",
    "append", "audiodev", "blockdev", "chardev", "cpu", "d", "D", "debugcon", "device", "display", "drive", "global",
    "initrd", "machine", "m", "monitor", "net", "netdev", "nic", "nographic", "numa", "object", "parallel", "qmp",
    "qmp-pretty", "serial", "uuid", "vnc", "S", "incoming", "no-user-config", "sandbox",
];
/// Those without a value.
#[rustfmt::skip]
pub(super) const FLAGS: &[&str] = &[
    "enable-kvm", "no-reboot", "no-shutdown", "no-hpet", "no-acpi", "no-fd-bootchk", "nodefaults", "usb", "win2k-hack",
    "singlestep", "one-insn-per-tb", "only-migratable", "nographic", "S", "no-user-config",
];
/// Options whose value is not a list but one thing.
const WHOLE: &[&str] = &["kernel", "initrd", "bios", "D", "d", "k", "seed", "uuid", "vga"];
/// Options whose values the guest reads as text, and keys of others with values that are text or networks.
const TEXTS: &[&str] = &["append", "smbios", "name", "cpu"];
#[rustfmt::skip]
const TEXT_KEYS: &[&str] = &[
    "serial", "product", "vendor", "ver", "model", "name", "guid", "loadparm", "osk", "edid", "string", "value",
    "x-oem-id", "x-oem-table-id", "net", "ipv6-net",
];

fn run(input: &[u8]) -> Outcome {
    let description = match serde_json::from_slice::<Description>(input) {
        Ok(description) => description,
        Err(error) => return Outcome::refused(skeleton(&error.to_string())),
    };
    assert!(description.options.len() <= MAX_OPTIONS);
    let text = serde_json::to_string(&description);
    let again = text.and_then(|text| serde_json::from_str::<Description>(&text));
    assert!(again.is_ok_and(|again| again == description), "what is written reads otherwise");
    let _ = (description.cpu_host(), description.accelerators());
    let (policy, place) = (policy(&[("/srv/vm/disks", "/data/disks")]), place());
    match rebuild(&description, &policy, &place) {
        Ok(rebuilt) => {
            check(&rebuilt);
            next_hop(&description, &rebuilt, &place);
            Outcome::accepted(shape(&rebuilt))
        }
        Err(refusals) => Outcome::refused(refused(&refusals)),
    }
}

fn policy(mappings: &[(&str, &str)]) -> Policy {
    let mappings: Vec<_> =
        mappings.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
    match Policy::new(&ROOTS.map(String::from), &mappings, &[]) {
        Ok(policy) => policy,
        Err(error) => super::broken(&error),
    }
}

fn place() -> Place {
    match Place::new(SOCKETS, OUTPUT) {
        Ok(place) => place,
        Err(error) => super::broken(&error),
    }
}

fn refused(refusals: &[Refusal]) -> String {
    assert!((1..=MAX_REFUSALS).contains(&refusals.len()), "{} refusals", refusals.len());
    for refusal in refusals {
        assert!(!refusal.code.is_empty() && !refusal.remedy.is_empty());
        let _ = of_error(&refusal.reason, ERROR_BYTES);
    }
    let mut codes: Vec<&str> = refusals.iter().map(|refusal| refusal.code.as_str()).collect();
    codes.sort_unstable();
    codes.dedup();
    format!("{}: {}", codes.join(", "), skeleton(&refusals[0].reason))
}

/// The options of a vector; complains about one that is on no list.
fn options(argv: &[String]) -> Vec<(&str, &str)> {
    let (mut options, mut argv) = (Vec::new(), argv.iter());
    while let Some(arg) = argv.next() {
        let name = arg.strip_prefix('-').unwrap_or_default();
        assert!(ALLOWED.contains(&name), "the option {arg:?} is on no list");
        if FLAGS.contains(&name) {
            options.push((name, ""));
        } else {
            let Some(value) = argv.next() else { super::broken(&format!("{arg} lacks its value")) };
            options.push((name, value.as_str()));
        }
    }
    options
}

fn check(rebuilt: &Rebuilt) {
    let options = options(&rebuilt.argv);
    let of = |name: &str| {
        options
            .iter()
            .filter(|(known, _)| *known == name)
            .map(|(_, value)| *value)
            .collect::<Vec<_>>()
    };
    assert_eq!(of("incoming"), ["defer"], "it waits for its state");
    assert_eq!((of("S").len(), of("no-user-config").len(), of("machine").len()), (1, 1, 1));
    assert!(
        matches!(of("sandbox")[..], [filter] if filter.starts_with("on,") && filter.contains("spawn=deny"))
    );
    let ours = format!("unix:{SOCKETS}/qmp.sock,server=on,wait=off");
    assert_eq!(
        of("qmp").iter().filter(|value| **value == ours).count(),
        1,
        "the agent's own socket"
    );
    let bytes: usize = rebuilt.argv.iter().map(String::len).sum();
    assert!(bytes <= 2 * MAX_TOTAL_BYTES, "{bytes} bytes of arguments");
    for (name, value) in &options {
        assert!(!value.chars().any(char::is_control), "-{name} {value:?}");
        for (key, text) in settings(name, value) {
            let path = text.trim_start_matches("file:").trim_start_matches("unix:");
            if path.starts_with('/') && !TEXT_KEYS.contains(&key.as_str()) {
                let devices = ["/dev/urandom", "/dev/random", "/dev/hwrng"];
                let roots = [&ROOTS[..], &[SOCKETS, OUTPUT], &devices].concat();
                assert!(below(path, &roots), "-{name} names {path} as {key:?}");
            }
        }
    }
    for need in &rebuilt.inputs {
        assert!(below(&need.path, &ROOTS), "{} is below no root", need.path);
    }
    for one in &rebuilt.relocated {
        assert!(below(&one.path, &[SOCKETS, OUTPUT]), "{} is not in the VM's place", one.path);
    }
    assert!(rebuilt.serial.iter().all(|path| below(path, &[OUTPUT])), "{:?}", rebuilt.serial);
    // A socket's path has at most 107 bytes.
    let sockets = rebuilt.relocated.iter().filter(|one| one.path.starts_with(SOCKETS));
    assert!(sockets.map(|one| one.path.len()).all(|length| length <= 107));
}

/// Whether a path lies in one of these folders, or is one.
fn below(path: &str, roots: &[&str]) -> bool {
    let root = |root: &&str| {
        path.strip_prefix(*root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    roots.iter().any(root) && !path.split('/').any(|part| part == "..")
}

/// Keys and values of an option, taken apart as QEMU does: JSON, or pairs between single commas. Not of one that is text.
fn settings(name: &str, value: &str) -> Vec<(String, String)> {
    if TEXTS.contains(&name) {
        return Vec::new();
    }
    let is_file = matches!(name, "serial" | "parallel" | "debugcon") && value.starts_with("file:");
    if WHOLE.contains(&name) || is_file {
        return vec![(String::new(), value.to_owned())];
    }
    if value.starts_with('{') {
        let Ok(document) = serde_json::from_str(value) else {
            super::broken(&format!("-{name} {value} is no JSON"));
        };
        let mut settings = Vec::new();
        collect("", &document, &mut settings);
        return settings;
    }
    let pairs = value.replace(",,", "\0");
    let pairs = pairs.split(',').map(|pair| {
        let implied = if name == "fw_cfg" { "name" } else { "" };
        let (key, value) = pair.split_once('=').unwrap_or((implied, pair));
        (key.to_owned(), value.replace('\0', ","))
    });
    pairs.collect()
}

fn collect(key: &str, value: &Value, settings: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| collect(key, value, settings)),
        Value::Array(list) => list.iter().for_each(|value| collect(key, value, settings)),
        Value::String(text) => settings.push((key.to_owned(), text.clone())),
        _ => {}
    }
}

/// What was rebuilt, described at this host and rebuilt at one like it, is the same.
fn next_hop(description: &Description, rebuilt: &Rebuilt, place: &Place) {
    let argv: Vec<String> =
        [description.program.clone()].into_iter().chain(rebuilt.argv.clone()).collect();
    let Ok(ram_block) = BlockName::new(description.ram_block.as_str().as_bytes()) else { return };
    let facts = RunningFacts {
        machine_type: description.machine_type.clone(),
        ram_block,
        ram_bytes: description.ram_bytes,
        qemu_version: description.qemu_version.clone(),
        program_path: None,
        working_dir: Some("/".into()),
        agent_qmp: Some(rebuilt.qmp.clone()),
        image_formats: Vec::new(),
    };
    let described = match Description::from_argv(&argv, &facts) {
        Ok(described) => described,
        Err(refusals) => {
            super::broken(&format!("what was rebuilt cannot be described: {refusals:?}"))
        }
    };
    match rebuild(&described, &policy(&[]), place) {
        Ok(again) => assert_eq!(again.argv, rebuilt.argv, "the next hop is another VM"),
        Err(refusals) => super::broken(&format!("the next hop is refused: {refusals:?}")),
    }
}

fn shape(rebuilt: &Rebuilt) -> String {
    let mut names: Vec<&str> = options(&rebuilt.argv)
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !matches!(*name, "S" | "sandbox"))
        .collect();
    names.sort_unstable();
    names.dedup();
    let kept = names.len().min(12);
    format!(
        "{}; {} files, {} moved, {} notes",
        names[..kept].join(" "),
        scale(rebuilt.inputs.len() as u64),
        scale(rebuilt.relocated.len() as u64),
        scale(rebuilt.notes.len() as u64)
    )
}
