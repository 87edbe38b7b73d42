//! QEMU's options: which take a value, and what a destination does with each. One row per option, one place to look.
//!
//! Sorted by what is done: taken over after a check, rebuilt by code in `rebuild/`, left out, refused.

use crate::rebuild::FileKind;

/// Whether an option is followed by a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Arity {
    Flag,
    Value,
}

/// What a value may look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Letters, digits and `. _ : + - @ [ ]`: ids, numbers, sizes, addresses, switches. Never a path.
    Word,
    /// A word, slashes allowed (`10.0.2.0/24`).
    Network,
    /// Anything without control characters: it reaches the guest or a log, never a file name.
    Text,
    /// One of these.
    Only(&'static [&'static str]),
    /// A file that QEMU opens: absolute, mapped, below the roots.
    File(FileKind),
    /// As `File`, or a bare name that QEMU finds in its own data folder, or nothing.
    DataFile(FileKind),
    /// Not taken over, with what to do instead.
    Not(&'static str),
    /// Left out, with why the VM does not miss it.
    LeftOut(&'static str),
}

/// A key of an option's list, and what its value may be. A key that ends in `*` stands for all that begin so.
pub(crate) type Rule = (&'static str, Kind);

/// The rules of an option whose value is a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Keyed {
    pub(crate) implied: Option<&'static str>,
    pub(crate) rules: &'static [Rule],
}

/// Options that a function of their own rebuilds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Special {
    Accel,
    Append,
    Audio,
    Chardev,
    Cpu,
    Blockdev,
    DebugLog,
    Device,
    Display,
    Drive,
    Global,
    Initrd,
    LogFile,
    Machine,
    Memory,
    Monitor,
    Net,
    Netdev,
    Nic,
    Nographic,
    Numa,
    Object,
    Parallel,
    Serial,
    Uuid,
    Vnc,
}

/// What a destination does with an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Treatment {
    /// A flag, or one value of a kind.
    Keep(Kind),
    Keyed(Keyed),
    Special(Special),
    /// Belongs to one run; the agent sets its own.
    RunOnly,
    /// Left out, with why.
    LeftOut(&'static str),
    /// Refused, with what to do instead.
    Refused(&'static str),
}

/// One option.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) arity: Arity,
    pub(crate) treatment: Treatment,
}

/// The row of the option `name` (without dashes).
pub(crate) fn find(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == name)
}

const fn flag(name: &'static str, treatment: Treatment) -> Row {
    Row { name, arity: Arity::Flag, treatment }
}

const fn value(name: &'static str, treatment: Treatment) -> Row {
    Row { name, arity: Arity::Value, treatment }
}

const fn keyed(name: &'static str, implied: Option<&'static str>, rules: &'static [Rule]) -> Row {
    value(name, Treatment::Keyed(Keyed { implied, rules }))
}

const fn special(name: &'static str, what: Special) -> Row {
    value(name, Treatment::Special(what))
}

const fn refused(name: &'static str, remedy: &'static str) -> Row {
    value(name, Treatment::Refused(remedy))
}

const fn refused_flag(name: &'static str, remedy: &'static str) -> Row {
    flag(name, Treatment::Refused(remedy))
}

const KEEP: Treatment = Treatment::Keep(Kind::Word);
const NO_WINDOW: Treatment = Treatment::LeftOut("there is no window at the destination");
const WITHOUT: &str = "start the VM without it";
const SHARE: &str = "a host folder does not move with a VM; use a disk or a network file system";
const DRIVE: &str = "write it as -drive file=...,format=...";
const PATHS: &str = "map the program to a wrapper that adds it, with [paths]";
const XEN: &str = "use KVM or TCG";

#[rustfmt::skip]
static TABLE: &[Row] = &[
    // Taken over after a check.
    flag("enable-kvm", KEEP),
    flag("no-reboot", KEEP),
    flag("no-shutdown", KEEP),
    flag("no-hpet", KEEP),
    flag("no-acpi", KEEP),
    flag("no-fd-bootchk", KEEP),
    flag("nodefaults", KEEP),
    flag("usb", KEEP),
    flag("win2k-hack", KEEP),
    flag("singlestep", KEEP),
    flag("one-insn-per-tb", KEEP),
    flag("only-migratable", KEEP),
    value("seed", KEEP),
    value("vga", Treatment::Keep(Kind::Only(&["std", "cirrus", "vmware", "qxl", "virtio", "none"]))),
    value("usbdevice", Treatment::Keep(Kind::Only(&["tablet", "mouse", "keyboard"]))),
    value("watchdog", Treatment::Keep(Kind::Only(&["i6300esb", "ib700"]))),
    value("watchdog-action", KEEP),
    value("k", Treatment::Keep(Kind::Only(&[
        "ar", "bepo", "cz", "da", "de", "de-ch", "en-gb", "en-us", "es", "et", "fi", "fo", "fr", "fr-be", "fr-ca",
        "fr-ch", "hr", "hu", "is", "it", "ja", "lt", "lv", "mk", "nl", "no", "pl", "pt", "pt-br", "ru", "sl", "sv",
        "th", "tr",
    ]))),
    value("kernel", Treatment::Keep(Kind::File(FileKind::Boot))),
    value("bios", Treatment::Keep(Kind::DataFile(FileKind::Firmware))),
    keyed("action", None, &[("reboot", Kind::Word), ("shutdown", Kind::Word), ("panic", Kind::Word), ("watchdog", Kind::Word)]),
    keyed("boot", Some("order"), &[
        ("order", Kind::Word), ("once", Kind::Word), ("menu", Kind::Word), ("strict", Kind::Word),
        ("reboot-timeout", Kind::Word), ("splash-time", Kind::Word), ("splash", Kind::File(FileKind::Firmware)),
    ]),
    keyed("fw_cfg", Some("name"), &[
        ("name", Kind::Network), ("string", Kind::Text), ("file", Kind::File(FileKind::Firmware)),
        ("gen_id", Kind::Not(WITHOUT)),
    ]),
    keyed("msg", None, &[("timestamp", Kind::Word), ("guest-name", Kind::Word)]),
    keyed("name", Some("guest"), &[("guest", Kind::Text), ("process", Kind::Word), ("debug-threads", Kind::Word)]),
    keyed("overcommit", None, &[
        ("cpu-pm", Kind::Word),
        ("mem-lock", Kind::LeftOut("pages locked beforehand could not be filled on demand")),
    ]),
    keyed("rtc", None, &[("base", Kind::Word), ("clock", Kind::Word), ("driftfix", Kind::Word)]),
    keyed("smp", Some("cpus"), &[
        ("cpus", Kind::Word), ("maxcpus", Kind::Word), ("sockets", Kind::Word), ("dies", Kind::Word),
        ("clusters", Kind::Word), ("cores", Kind::Word), ("threads", Kind::Word), ("drawers", Kind::Word),
        ("books", Kind::Word), ("modules", Kind::Word),
    ]),
    keyed("smbios", None, &[
        ("file", Kind::Not("write the fields as type=...")), ("path", Kind::Not("write the string as value=...")),
        ("type", Kind::Word), ("uefi", Kind::Word), ("vendor", Kind::Text), ("version", Kind::Text), ("date", Kind::Text),
        ("release", Kind::Word), ("manufacturer", Kind::Text), ("product", Kind::Text), ("serial", Kind::Text),
        ("uuid", Kind::Word), ("sku", Kind::Text), ("family", Kind::Text), ("asset", Kind::Text),
        ("location", Kind::Text), ("sock_pfx", Kind::Text), ("part", Kind::Text), ("max-speed", Kind::Word),
        ("current-speed", Kind::Word), ("processor-id", Kind::Word), ("processor-family", Kind::Word),
        ("external_reference", Kind::Text), ("internal_reference", Kind::Text), ("connector_type", Kind::Word),
        ("port_type", Kind::Word), ("value", Kind::Text), ("loc_pfx", Kind::Text), ("bank", Kind::Text),
        ("speed", Kind::Word), ("designation", Kind::Text), ("kind", Kind::Word), ("instance", Kind::Word),
        ("pcidev", Kind::Word),
    ]),
    keyed("mon", Some("chardev"), &[("chardev", Kind::Word), ("id", Kind::Word), ("mode", Kind::Word), ("pretty", Kind::Word)]),
    // Rebuilt by code.
    special("accel", Special::Accel),
    special("append", Special::Append),
    special("audiodev", Special::Audio),
    special("blockdev", Special::Blockdev),
    special("chardev", Special::Chardev),
    special("cpu", Special::Cpu),
    special("d", Special::DebugLog),
    special("D", Special::LogFile),
    special("debugcon", Special::Parallel),
    special("device", Special::Device),
    special("display", Special::Display),
    special("drive", Special::Drive),
    special("global", Special::Global),
    special("initrd", Special::Initrd),
    special("machine", Special::Machine),
    special("M", Special::Machine),
    special("m", Special::Memory),
    special("monitor", Special::Monitor),
    special("net", Special::Net),
    special("netdev", Special::Netdev),
    special("nic", Special::Nic),
    flag("nographic", Treatment::Special(Special::Nographic)),
    special("numa", Special::Numa),
    special("object", Special::Object),
    special("parallel", Special::Parallel),
    special("qmp", Special::Monitor),
    special("qmp-pretty", Special::Monitor),
    special("serial", Special::Serial),
    special("uuid", Special::Uuid),
    special("vnc", Special::Vnc),
    // Left out: this run's, or this host's.
    flag("S", Treatment::RunOnly),
    flag("daemonize", Treatment::RunOnly),
    value("incoming", Treatment::RunOnly),
    value("pidfile", Treatment::RunOnly),
    // Always given by us.
    flag("no-user-config", Treatment::RunOnly),
    flag("nouserconfig", Treatment::RunOnly),
    value("sandbox", Treatment::LeftOut("the destination sets its own")),
    value("mem-path", Treatment::LeftOut("memory is in an anonymous shared file here")),
    flag("mem-prealloc", Treatment::LeftOut("memory is filled by the migration")),
    value("id", Treatment::LeftOut("a number of the source's host")),
    value("iscsi", Treatment::LeftOut("no iSCSI disk moves")),
    value("echr", NO_WINDOW),
    flag("full-screen", NO_WINDOW),
    flag("alt-grab", NO_WINDOW),
    flag("ctrl-grab", NO_WINDOW),
    flag("no-quit", NO_WINDOW),
    flag("no-frame", NO_WINDOW),
    // Refused.
    refused("L", PATHS),
    refused("acpitable", WITHOUT),
    refused("add-fd", "a descriptor does not move with a VM; name the file"),
    flag("async-teardown", Treatment::Refused(WITHOUT)),
    refused("audio", "use -audiodev none,id=..."),
    refused_flag("audio-help", WITHOUT),
    refused("balloon", "use -device virtio-balloon-pci"),
    refused("cdrom", DRIVE),
    refused("chroot", "the agent confines QEMU"),
    refused("compat", WITHOUT),
    refused_flag("curses", "use -display none"),
    refused("dfilter", WITHOUT),
    refused("dtb", WITHOUT),
    refused("dump-vmstate", WITHOUT),
    refused_flag("enable-fips", WITHOUT),
    refused_flag("enable-sync-profile", WITHOUT),
    refused("fda", DRIVE),
    refused("fdb", DRIVE),
    refused("fsdev", SHARE),
    refused("gdb", WITHOUT),
    refused_flag("h", WITHOUT),
    refused("hda", DRIVE),
    refused("hdb", DRIVE),
    refused("hdc", DRIVE),
    refused("hdd", DRIVE),
    refused_flag("help", WITHOUT),
    refused("icount", "a counted clock does not move; start the VM without it"),
    refused_flag("jitdump", WITHOUT),
    refused("loadvm", "a saved state is loaded once, at the source"),
    refused("mtdblock", DRIVE),
    refused("option-rom", "use -device ...,romfile=..."),
    refused_flag("perfmap", WITHOUT),
    refused("pflash", "write it as -drive if=pflash,file=...,format=raw"),
    refused("plugin", WITHOUT),
    refused_flag("portrait", WITHOUT),
    refused_flag("preconfig", WITHOUT),
    refused("prom-env", WITHOUT),
    refused("qtest", WITHOUT),
    refused("qtest-log", WITHOUT),
    refused("readconfig", "write its settings as options"),
    refused("rotate", WITHOUT),
    refused("run-with", "the agent confines QEMU"),
    refused("runas", "the agent confines QEMU"),
    refused("user", "the agent confines QEMU"),
    refused_flag("s", WITHOUT),
    refused("sd", DRIVE),
    refused_flag("sdl", "use -display none or -vnc unix:..."),
    refused_flag("semihosting", WITHOUT),
    refused("semihosting-config", WITHOUT),
    refused("set", "write the property where its option is"),
    refused("shim", WITHOUT),
    refused_flag("snapshot", "temporary images do not move; use a qcow2 overlay"),
    refused("soundhw", "use -device"),
    refused("spice", "use -vnc unix:..."),
    refused("tb-size", "use -accel tcg,tb-size=..."),
    refused("tpmdev", "a TPM's state does not move yet"),
    refused("trace", WITHOUT),
    refused_flag("version", WITHOUT),
    refused("virtfs", SHARE),
    refused_flag("xen-attach", XEN),
    refused("xen-domid", XEN),
    refused_flag("xen-domid-restrict", XEN),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_once() {
        for (at, row) in TABLE.iter().enumerate() {
            assert!(TABLE[at + 1..].iter().all(|other| other.name != row.name), "{}", row.name);
        }
    }
}
