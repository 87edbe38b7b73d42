//! Descriptions by their grammar: VMs as people and tools start them, all of which a destination takes.

use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Value, json};

use super::description::FLAGS;
use crate::Made;

#[derive(Arbitrary, Debug)]
struct Vm {
    options: Vec<Given>,
    is_q35: bool,
    has_directory: bool,
}

#[derive(Arbitrary, Debug)]
enum Given {
    Flag(u8),
    Disk { file: File, form: u8, is_read_only: bool },
    Net { form: u8, number: u8 },
    Port { form: u8, name: u8 },
    Device { form: u8, number: u8 },
    Memory { form: u8, number: u8 },
    Boot { form: u8, file: File },
    Other { form: u8 },
}

#[derive(Arbitrary, Debug)]
enum File {
    Disks(u8),
    Data(u8),
    Relative(u8),
}

/// A description that has to be rebuilt.
pub(super) fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    let vm = Vm::arbitrary(noise)?;
    let options = vm.options.iter().take(24).enumerate().flat_map(|(at, option)| option.parts(at));
    let options: Vec<Value> =
        options.map(|(name, value)| json!({"name": name, "value": value})).collect();
    let machine = if vm.is_q35 { "pc-q35-7.2" } else { "pc-i440fx-7.2" };
    Ok(Made::valid(described(machine, vm.has_directory, &options).to_string().into_bytes()))
}

fn described(machine: &str, has_directory: bool, options: &[Value]) -> Value {
    json!({
        "program": "qemu-system-x86_64", "program_path": "/usr/bin/qemu-system-x86_64",
        "working_dir": if has_directory { "/srv" } else { "/srv/vm" },
        "options": options, "machine_type": machine, "ram_block": "pc.ram", "ram_bytes": 268_435_456,
        "qemu_version": "7.2.22",
    })
}

impl File {
    fn path(&self) -> String {
        match self {
            Self::Disks(number) => format!("/srv/vm/disks/{number}.img"),
            Self::Data(number) => format!("/data//./{number}.img"),
            Self::Relative(number) => format!("r/{number}.img"),
        }
    }
}

type Parts = Vec<(&'static str, Option<String>)>;

impl Given {
    /// The options that this makes, as the `at`-th of its VM: ids are used once.
    fn parts(&self, at: usize) -> Parts {
        match self {
            Self::Flag(which) => vec![(FLAGS[usize::from(*which) % 11], None)],
            Self::Disk { file, form, is_read_only } => disk(&file.path(), *form, *is_read_only, at),
            Self::Net { form, number } => net(*form, *number, at),
            Self::Port { form, name } => port(*form, *name, at),
            Self::Device { form, number } => {
                let driver =
                    ["e1000", "virtio-net-pci", "virtio-balloon-pci", "qemu-xhci", "usb-tablet"];
                let driver = driver[usize::from(*form) % driver.len()];
                if form & 0x80 == 0 {
                    one("device", format!("{driver},id=dev{at},bus=b.{number}"))
                } else {
                    one(
                        "device",
                        json!({"driver": driver, "id": format!("dev{at}"), "n": number})
                            .to_string(),
                    )
                }
            }
            Self::Memory { form, number } => memory(*form, *number, at),
            Self::Boot { form, file } => match form % 4 {
                0 => one("kernel", file.path()),
                1 => one("initrd", file.path()),
                2 => one("bios", "bios-256k.bin".into()),
                _ => one("fw_cfg", format!("name=opt/x{at},file={}", file.path())),
            },
            Self::Other { form } => {
                let others = [
                    ("append", "console=ttyS0 root=/dev/vda quiet"),
                    ("smp", "2,sockets=1"),
                    ("vga", "std"),
                    ("rtc", "base=utc"),
                    ("cpu", "qemu64,+x2apic"),
                    ("accel", "tcg"),
                    ("boot", "order=c,menu=off"),
                    ("name", "web,,1"),
                    ("uuid", "0a1b2c3d-0000-4111-8222-ffffffffffff"),
                    ("m", "256"),
                    ("m", "262144k"),
                    ("smbios", "type=1,serial=a/b"),
                    ("vnc", "unix:/tmp/vnc.sock,share=ignore"),
                    ("display", "none"),
                    ("global", "PIIX4_PM.disable_s3=1"),
                    ("audiodev", "none,id=a"),
                    ("d", "guest_errors"),
                    ("D", "/tmp/q.log"),
                ];
                let (name, value) = others[usize::from(*form) % others.len()];
                one(name, value.into())
            }
        }
    }
}

fn one(name: &'static str, value: String) -> Parts {
    vec![(name, Some(value))]
}

fn disk(file: &str, form: u8, is_read_only: bool, at: usize) -> Parts {
    let switch = if is_read_only { "on" } else { "off" };
    match form % 4 {
        0 => one("drive", format!("file={file},format=raw,if=none,id=d{at},readonly={switch}")),
        1 => one(
            "drive",
            format!("file.filename={file},file.driver=file,driver=qcow2,if=none,id=d{at}"),
        ),
        2 => one(
            "blockdev",
            format!("driver=file,filename={file},node-name=n{at},read-only={switch}"),
        ),
        _ => one(
            "blockdev",
            json!({
                "driver": "qcow2", "node-name": format!("n{at}"), "read-only": is_read_only,
                "file": {"driver": "file", "filename": file, "cache": {"direct": true}},
                "backing": {"driver": "raw", "file": {"driver": "file", "filename": file}},
            })
            .to_string(),
        ),
    }
}

fn net(form: u8, number: u8, at: usize) -> Parts {
    match form % 5 {
        0 => one("netdev", format!("tap,id=n{at},ifname=tap{number},script=no,downscript=no")),
        1 => one("netdev", format!("user,id=n{at},net=10.0.{number}.0/24,hostfwd=tcp:127.0.0.1:{number}-:22,hostfwd=udp:127.0.0.1:1-:1")),
        2 => one("nic", format!("user,model=e1000,mac=52:54:00:00:00:{number:02x}")),
        3 => one("netdev", json!({"type": "user", "id": format!("n{at}"), "hostfwd": [{"str": "tcp:127.0.0.1:1-:1"}]}).to_string()),
        _ => one("netdev", format!("hubport,id=n{at},hubid={number}")),
    }
}

fn port(form: u8, name: u8, at: usize) -> Parts {
    let path = format!("/tmp/{}port{name}.sock", "long-name-".repeat(usize::from(name % 3)));
    match form % 9 {
        0 => one("serial", format!("file:{path}")),
        1 => one("serial", "mon:stdio".into()),
        2 => one("qmp", format!("unix:{path},server=on,wait=off")),
        3 => one("monitor", "stdio".into()),
        4 => one("chardev", format!("socket,id=c{at},path={path},server=on,wait=on")),
        5 => one("chardev", format!("file,id=c{at},path={path},logfile=/tmp/l.log")),
        6 => one("chardev", format!("stdio,id=c{at},signal=off")),
        7 => one("serial", "null".into()),
        _ => one("chardev", format!("socket,id=c{at},fd={name},server=on")),
    }
}

fn memory(form: u8, number: u8, at: usize) -> Parts {
    let mib = u32::from(number) + 1;
    match form % 4 {
        0 => one("object", format!("iothread,id=io{at}")),
        1 => one("object", format!("rng-random,id=rng{at},filename=/dev/urandom")),
        2 => one(
            "object",
            json!({"qom-type": "throttle-group", "id": format!("t{at}"), "x-iops-total": mib})
                .to_string(),
        ),
        _ => vec![
            (
                "object",
                Some(format!(
                    "memory-backend-file,id=mem{at},size={mib}M,mem-path=/dev/shm/x,prealloc=on"
                )),
            ),
            ("device", Some(format!("pc-dimm,id=dimm{at},memdev=mem{at}"))),
        ],
    }
}
