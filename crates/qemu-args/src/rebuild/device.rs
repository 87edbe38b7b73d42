//! `-device`: an allow-list of drivers whose state QEMU moves and that touch nothing of the host by themselves.

use alloc::format;
use alloc::string::ToString;

use super::check::{Checked, is_word};
use super::{Access, Builder, FileKind};
use crate::argv::shown;
use crate::params::Scalar;
use crate::table::Kind;

/// Virtio devices by their stem: `virtio-STEM-pci`, with or without `-transitional` or `-non-transitional`, or
/// `virtio-STEM-device`.
#[rustfmt::skip]
const VIRTIO: &[&str] = &[
    "balloon", "blk", "gpu", "iommu", "keyboard", "mouse", "multitouch", "net", "rng", "scsi", "serial", "sound",
    "tablet",
];

#[rustfmt::skip]
const DRIVERS: &[&str] = &[
    // Bridges and buses.
    "i82801b11-bridge", "ioh3420", "pci-bridge", "pcie-pci-bridge", "pcie-root-port", "pxb", "pxb-pcie",
    "vmbus-bridge", "x3130-upstream", "xio3130-downstream",
    // USB.
    "ich9-usb-ehci1", "ich9-usb-ehci2", "ich9-usb-uhci1", "ich9-usb-uhci2", "ich9-usb-uhci3", "ich9-usb-uhci4",
    "ich9-usb-uhci5", "ich9-usb-uhci6", "nec-usb-xhci", "pci-ohci", "piix3-usb-uhci", "piix4-usb-uhci", "qemu-xhci",
    "usb-ehci", "usb-hub", "usb-audio", "usb-bot", "usb-ccid", "usb-kbd", "usb-mouse", "usb-net", "usb-serial",
    "usb-storage", "usb-tablet", "usb-uas", "usb-wacom-tablet",
    // Storage.
    "am53c974", "dc390", "floppy", "ich9-ahci", "ahci", "ide-cd", "ide-hd", "isa-fdc", "isa-ide", "lsi53c810",
    "lsi53c895a", "megasas", "megasas-gen2", "mptsas1068", "nvme", "nvme-ns", "nvme-subsys", "piix3-ide", "piix4-ide",
    "pvscsi", "scsi-cd", "scsi-hd", "sd-card", "sdhci-pci",
    // Network.
    "e1000", "e1000-82544gc", "e1000-82545em", "e1000e", "i82550", "i82551", "i82557a", "i82557b", "i82557c",
    "i82558a", "i82558b", "i82559a", "i82559b", "i82559c", "i82559er", "i82562", "i82801", "igb", "ne2k_isa",
    "ne2k_pci", "pcnet", "rtl8139", "tulip", "vmxnet3",
    // Characters and input.
    "isa-debug-exit", "isa-debugcon", "isa-parallel", "isa-serial", "pci-serial", "pci-serial-2x", "pci-serial-4x",
    "virtconsole", "virtserialport", "vmmouse", "i8042",
    // Display.
    "VGA", "ati-vga", "bochs-display", "cirrus-vga", "isa-cirrus-vga", "isa-vga", "qxl", "qxl-vga", "ramfb",
    "secondary-vga", "virtio-vga", "vmware-svga",
    // Sound.
    "AC97", "ES1370", "adlib", "cs4231a", "gus", "hda-duplex", "hda-micro", "hda-output", "ich9-intel-hda",
    "intel-hda", "sb16",
    // The rest of a PC.
    "amd-iommu", "hv-balloon", "i6300esb", "ib700", "intel-iommu", "isa-applesmc", "pc-dimm", "pvpanic",
    "pvpanic-pci", "vmcoreinfo", "vmgenid", "sga",
];

/// Families that people do use, and why each stays behind. By prefix.
#[rustfmt::skip]
const REFUSED: &[(&str, &str, &str)] = &[
    ("vfio-", "a host's device cannot leave it", "detach it before the move"),
    ("vhost-user", "its state is in another process", "use a virtio device of QEMU's own"),
    ("vhost-", "its state is in the host's kernel", "use a virtio device of QEMU's own"),
    ("ivshmem", "its memory is shared with others on the host", "detach it before the move"),
    ("virtio-mem", "its memory does not move yet", "use pc-dimm"),
    ("virtio-pmem", "its memory is a file of the host", "use a disk"),
    ("nvdimm", "its memory is a file of the host", "use a disk"),
    ("sev-", "an encrypted guest cannot be moved by reading its memory", "start the VM without it"),
    ("virtio-9p", "a host folder does not move with a VM", "use a disk or a network file system"),
    ("virtio-gpu-gl", "it draws on the host's graphics card", "use virtio-gpu-pci"),
    ("virtio-vga-gl", "it draws on the host's graphics card", "use virtio-vga"),
    ("virtio-gpu-rutabaga", "it draws on the host's graphics card", "use virtio-gpu-pci"),
    ("virtio-input-host", "a host's device cannot leave it", "use virtio-keyboard-pci or virtio-tablet-pci"),
    ("scsi-block", "a host's device cannot leave it", "use scsi-hd"),
    ("scsi-generic", "a host's device cannot leave it", "use scsi-hd"),
    ("usb-host", "a host's device cannot leave it", "detach it before the move"),
    ("usb-redir", "its other end is a person's computer", "detach it before the move"),
    ("usb-mtp", "a host folder does not move with a VM", "use a disk or a network file system"),
    ("tpm-", "a TPM's state does not move yet", "start the VM without it"),
    ("loader", "it reads any file into the guest", "use -kernel, -initrd or -fw_cfg"),
    ("guest-loader", "it reads any file into the guest", "use -kernel, -initrd or -fw_cfg"),
];

/// Properties whose text the guest sees and QEMU does not interpret.
const TEXT: &[&str] =
    &["serial", "product", "vendor", "ver", "model", "name", "guid", "loadparm", "osk", "edid"];

/// Whether a driver is on the list.
pub(super) fn is_allowed(driver: &str) -> bool {
    if DRIVERS.contains(&driver) {
        return true;
    }
    let cpu = driver.ends_with("-x86_64-cpu") || driver.ends_with("-arm-cpu");
    if cpu {
        return is_word(driver);
    }
    let pci =
        driver.strip_suffix("-non-transitional").or_else(|| driver.strip_suffix("-transitional"));
    let stem = pci.unwrap_or(driver).strip_prefix("virtio-");
    let stem =
        stem.and_then(|stem| stem.strip_suffix("-pci").or_else(|| stem.strip_suffix("-device")));
    stem.is_some_and(|stem| VIRTIO.contains(&stem))
}

/// Whether a property can be taken over: it names no file, no descriptor and no folder.
pub(super) fn is_property(key: &str, value: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    match last {
        "romfile" => value.is_empty(),
        "fd" | "fds" | "vhostfd" | "hostfd" | "rootdir" | "sdrfile" | "frudatafile"
        | "filename" | "file" | "path" | "evdev" | "sysfsdev" | "hostdevice" | "mem-path" => false,
        last if TEXT.contains(&last) => !value.chars().any(char::is_control),
        _ => is_word(value),
    }
}

impl Builder<'_> {
    pub(super) fn device(&mut self, value: &str) {
        let Some(mut params) = self.parse("device", value, Some("driver")) else {
            return;
        };
        let driver = params.get("driver").map(|driver| driver.to_string()).unwrap_or_default();
        let mut whole = self.driver(&driver);
        for (key, value) in &mut params.pairs {
            let text = value.text().to_string();
            let what = format!("-device {driver} {key}=");
            if key == "romfile" {
                match self.scalar(&what, &text, Kind::DataFile(FileKind::Rom), Access::Read) {
                    Checked::Value(ours) if ours == text => {}
                    Checked::Value(ours) => *value = Scalar::Text(ours),
                    Checked::LeftOut | Checked::Refused => whole = false,
                }
            } else if key != "driver" && !is_property(key, &text) {
                let reason = format!("{what}{} is not taken over", shown(&text));
                self.refuse("value-not-allowed", reason, "start the VM without this property");
                whole = false;
            }
        }
        if whole {
            self.push("device", Some(params.to_text()));
        }
    }

    /// Whether the driver is on the list; if not, a refusal that says why.
    pub(super) fn driver(&mut self, driver: &str) -> bool {
        if is_allowed(driver) {
            return true;
        }
        let family = REFUSED.iter().find(|(prefix, ..)| driver.starts_with(prefix));
        let (why, remedy) = family.map_or(
            ("it is on no list", "start the VM without it, or allow it with [accept] options"),
            |(_, why, remedy)| (*why, *remedy),
        );
        self.refuse(
            "device-not-allowed",
            format!("device {} is not taken over: {why}", shown(driver)),
            remedy,
        );
        false
    }
}
