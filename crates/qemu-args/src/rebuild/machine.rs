//! Machine, accelerator, CPU, NUMA, global properties.

use alloc::format;
use alloc::string::ToString;

use super::check::is_word;
use super::{Access, Builder, device};
use crate::argv::shown;
use crate::params::{Params, is_key};
use crate::table::{Kind, Rule};

const BOOT: Kind = Kind::Not("use -kernel, -initrd, -append or -bios");
const SECRET: Kind = Kind::Not("an encrypted guest cannot be moved by reading its memory");
const ACCELERATORS: &[&str] = &["kvm", "tcg", "kvm:tcg", "tcg:kvm"];

#[rustfmt::skip]
const MACHINE_RULES: &[Rule] = &[
    ("type", Kind::Word), ("accel", Kind::Only(ACCELERATORS)), ("memory-backend", Kind::Word),
    ("acpi", Kind::Word), ("aux-ram-share", Kind::Word), ("default-bus-bypass-iommu", Kind::Word),
    ("bus-lock-ratelimit", Kind::Word), ("dump-guest-core", Kind::Word), ("graphics", Kind::Word),
    ("hmat", Kind::Word), ("hpet", Kind::Word), ("i8042", Kind::Word), ("igd-passthru", Kind::Only(&["off"])),
    ("kernel-irqchip", Kind::Word), ("kvm-shadow-mem", Kind::Word), ("max-fw-size", Kind::Word),
    ("max-ram-below-4g", Kind::Word), ("mem-merge", Kind::Word), ("pflash0", Kind::Word), ("pflash1", Kind::Word),
    ("fd-bootchk", Kind::Word), ("nvdimm", Kind::Only(&["off"])), ("pic", Kind::Word), ("pit", Kind::Word),
    ("sata", Kind::Word), ("smbios-entry-point-type", Kind::Word), ("smbus", Kind::Word), ("smm", Kind::Word),
    ("suppress-vmdesc", Kind::Word), ("usb", Kind::Word), ("vmport", Kind::Word), ("x-oem-id", Kind::Text),
    ("x-oem-table-id", Kind::Text), ("cxl", Kind::Only(&["off"])), ("rtc", Kind::Word), ("isa-serial", Kind::Word),
    ("ioapic2", Kind::Word), ("pcie", Kind::Word), ("auto-kernel-cmdline", Kind::Word),
    ("smp.*", Kind::Word),
    // Arm's virt.
    ("gic-version", Kind::Word), ("highmem*", Kind::Word), ("iommu", Kind::Word), ("its", Kind::Word),
    ("mte", Kind::Word), ("ras", Kind::Word), ("secure", Kind::Word), ("virtualization", Kind::Word),
    ("dtb-randomness", Kind::Word),
    ("kernel", BOOT), ("initrd", BOOT), ("append", BOOT), ("firmware", BOOT), ("dtb", BOOT), ("dumpdtb", BOOT),
    ("boot.*", Kind::Not("use -boot")), ("memory.*", Kind::Not("use -m")),
    ("memory-encryption", SECRET), ("confidential-guest-support", SECRET), ("sgx-epc*", SECRET),
];

#[rustfmt::skip]
const ACCEL_RULES: &[Rule] = &[
    ("accel", Kind::Only(ACCELERATORS)),
    ("dirty-ring-size", Kind::Word), ("eager-split-size", Kind::Word), ("kernel-irqchip", Kind::Word),
    ("kvm-shadow-mem", Kind::Word), ("notify-vmexit", Kind::Word), ("notify-window", Kind::Word),
    ("one-insn-per-tb", Kind::Word), ("split-wx", Kind::Word), ("tb-size", Kind::Word), ("thread", Kind::Word),
];

#[rustfmt::skip]
const NUMA_RULES: &[Rule] = &[
    ("type", Kind::Only(&["node", "dist", "cpu", "hmat-lb", "hmat-cache"])),
    ("nodeid", Kind::Word), ("cpus", Kind::Word), ("mem", Kind::Word), ("memdev", Kind::Word),
    ("initiator", Kind::Word), ("src", Kind::Word), ("dst", Kind::Word), ("val", Kind::Word),
    ("node-id", Kind::Word), ("socket-id", Kind::Word), ("die-id", Kind::Word), ("cluster-id", Kind::Word),
    ("core-id", Kind::Word), ("thread-id", Kind::Word), ("target", Kind::Word), ("hierarchy", Kind::Word),
    ("data-type", Kind::Word), ("latency", Kind::Word), ("bandwidth", Kind::Word), ("size", Kind::Word),
    ("level", Kind::Word), ("associativity", Kind::Word), ("policy", Kind::Word), ("line", Kind::Word),
];

/// Devices that every machine has and `-device` does not name, whose properties `-global` sets.
#[rustfmt::skip]
const BOARD_DEVICES: &[&str] = &[
    "ICH9-LPC", "PIIX4_PM", "PIIX3", "cfi.pflash01", "fw_cfg", "fw_cfg_io", "fw_cfg_mem", "hpet", "i440FX-pcihost",
    "ich9-usb-ehci1", "isa-fdc", "i8042", "kvm-pit", "isa-pit", "kvmclock", "mc146818rtc", "mch", "nec-usb-xhci",
    "piix3-ide", "q35-pcihost", "vmport", "apic", "kvm-apic", "ioapic", "kvm-ioapic",
];

impl Builder<'_> {
    /// All `-machine` options as one, of the canonical type, with the memory backend.
    pub(super) fn machine(&mut self) {
        let canonical = self.description.machine_type.as_str();
        let none = matches!(canonical, "none" | "x-remote") || canonical.starts_with("xen");
        if none || canonical.is_empty() || !is_word(canonical) {
            let reason = format!("machine type {} is not taken over", shown(canonical));
            return self.refuse(
                "machine-not-allowed",
                reason,
                "use a versioned pc, q35 or virt machine",
            );
        }
        let mut all = Params::new(Some("type"));
        all.set("type", canonical);
        let description = self.description;
        for option in &description.options {
            if !matches!(option.name.as_str(), "machine" | "M") {
                continue;
            }
            let Some(value) = option.value.as_deref() else {
                self.malformed("machine", "this option needs a value");
                continue;
            };
            let Some(params) = self.parse("machine", value, Some("type")) else {
                continue;
            };
            for (key, value) in params.pairs.iter().filter(|(key, _)| key != "type") {
                all.set(&key.replace('_', "-"), value.text());
            }
        }
        all.remove("memory-backend");
        if let Some(id) = self.main_backend() {
            all.set("memory-backend", id);
        }
        self.keyed("machine", all, MACHINE_RULES);
    }

    pub(super) fn accel(&mut self, value: &str) {
        if let Some(params) = self.parse("accel", value, Some("accel")) {
            self.keyed("accel", params, ACCEL_RULES);
        }
    }

    /// A CPU model with its features: `EPYC,+x2apic,-svm,family=6`.
    pub(super) fn cpu(&mut self, value: &str) {
        let feature = |part: &str| {
            let part = part.strip_prefix(['+', '-']).unwrap_or(part);
            let (key, setting) = part.split_once('=').unwrap_or((part, ""));
            let key_fits = !key.is_empty() && is_word(key) && key != "help";
            // A CPU's model name (`model-id=`) has spaces; nothing in a CPU names a file.
            key_fits
                && setting
                    .bytes()
                    .all(|byte| byte == b' ' || byte.is_ascii_graphic() && byte != b'/')
        };
        if value.is_empty() || value == "?" || !value.split(',').all(feature) {
            return self.malformed(
                "cpu",
                &format!("expected MODEL,+feature,key=value, found {}", shown(value)),
            );
        }
        self.push("cpu", Some(value.to_string()));
    }

    pub(super) fn numa(&mut self, value: &str) {
        if let Some(params) = self.parse("numa", value, Some("type")) {
            self.keyed("numa", params, NUMA_RULES);
        }
    }

    /// A property of all devices of one kind, in either of QEMU's two spellings.
    pub(super) fn global(&mut self, value: &str) {
        let short = || {
            let (place, setting) = value.split_once('=')?;
            let (driver, property) = place.rsplit_once('.').filter(|_| !place.contains(','))?;
            Some((driver.to_string(), property.to_string(), setting.to_string()))
        };
        let long = || {
            let params = Params::commas(value, None).ok()?;
            let known = ["driver", "property", "value"];
            if !params.pairs.iter().all(|(key, _)| known.contains(&key.as_str())) {
                return None;
            }
            let [driver, property, setting] =
                known.map(|key| params.get(key).map(|text| text.to_string()));
            Some((driver?, property?, setting?))
        };
        let Some((driver, property, setting)) = short().or_else(long) else {
            return self.malformed(
                "global",
                &format!("expected DRIVER.PROPERTY=VALUE, found {}", shown(value)),
            );
        };
        if !BOARD_DEVICES.contains(&driver.as_str()) && !device::is_allowed(&driver) {
            let reason = format!("-global for {} is not taken over", shown(&driver));
            return self.refuse("option-not-allowed", reason, "set the property at the device");
        }
        if !is_key(&property) || !device::is_property(&property, &setting) {
            let reason = format!("-global {} is not taken over", shown(value));
            return self.refuse("value-not-allowed", reason, "set the property at the device");
        }
        let mut params = Params::new(None);
        params.set("driver", driver);
        params.set("property", property);
        params.set("value", setting);
        self.push("global", Some(params.to_text()));
    }

    /// What QEMU logs: complaints about the guest. The rest can fill this host's disk.
    pub(super) fn debug_log(&mut self, value: &str) {
        let harmless = |item: &str| matches!(item, "guest_errors" | "unimp");
        if value.split(',').all(harmless) {
            return self.push("d", Some(value.to_string()));
        }
        let reason = format!("-d {} can fill the destination's disk", shown(value));
        self.refuse("value-not-allowed", reason, "log guest_errors and unimp only");
    }

    /// Sound backends: the one that plays nothing. The others play to a person who sits at the source.
    pub(super) fn audio(&mut self, value: &str) {
        const RULES: &[Rule] = &[
            ("driver", Kind::Only(&["none"])),
            ("id", Kind::Word),
            ("timer-period", Kind::Word),
            ("in.*", Kind::Word),
            ("out.*", Kind::Word),
        ];
        let Some(params) = self.parse("audiodev", value, Some("driver")) else {
            return;
        };
        if let Some(params) = self.ruled("audiodev", params, RULES, Access::Read) {
            self.push("audiodev", Some(params.to_text()));
        }
    }
}
