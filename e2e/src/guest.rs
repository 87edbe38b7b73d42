//! The test guest's definition: QEMU's argument vector, as a user would write it.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::artifacts::{Accelerator, QEMU, applications, kernel_and_initrd};
use crate::world::{GUEST_ADDRESS, TAP};

/// Not a multiple of 256 KiB: before 9.0, QEMU under TCG forgets pages that a guest writes while it
/// is migrated, but only in RAM whose length is such a multiple. Under KVM it is no matter.
const MEMORY_KIB: u32 = 262_136;

/// A program as people use it, from the disk of applications. What a unit of its work is, and what its
/// passes check, is told in the guest's own sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Application {
    /// A redis server with 64 MiB of values; work: commands processed.
    Redis,
    /// vim and somebody who types; work: edits made.
    Edit,
    /// Sound decoded in real time; work: KiB of it.
    Audio,
    /// Video decoded in real time; work: pictures.
    Video,
}

impl Application {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Redis, Self::Edit, Self::Audio, Self::Video];

    /// The first word of its load.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Edit => "edit",
            Self::Audio => "audio",
            Self::Video => "video",
        }
    }

    /// The one that a load's first word names, if it is one.
    #[must_use]
    pub fn of_load(load: &str) -> Option<Self> {
        let name = load.split_whitespace().next()?;
        Self::ALL.into_iter().find(|application| application.name() == name)
    }
}

/// A guest to be; every method changes one thing of a plain one (pc, 1 CPU, 256 MiB, idle).
#[derive(Clone, Debug)]
pub struct Guest {
    name: String,
    program: PathBuf,
    machine: String,
    cpus: u32,
    memory_kib: u32,
    vga: &'static str,
    load: String,
    disk: Option<PathBuf>,
    has_tap: bool,
    qmp: Option<PathBuf>,
    options: Vec<String>,
}

impl Guest {
    /// A plain guest.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            program: PathBuf::from(QEMU),
            machine: "pc".to_owned(),
            cpus: 1,
            memory_kib: MEMORY_KIB,
            vga: "none",
            load: "idle size=16M".to_owned(),
            disk: None,
            has_tap: false,
            qmp: None,
            options: Vec::new(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Another QEMU.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = program.to_path_buf();
        self
    }

    /// A machine type: `pc`, `q35`, `pc-i440fx-7.2`.
    #[must_use]
    pub fn machine(mut self, machine: &str) -> Self {
        machine.clone_into(&mut self.machine);
        self
    }

    /// Virtual CPUs.
    #[must_use]
    pub const fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Memory; mind the hazard that the default avoids.
    #[must_use]
    pub const fn with_memory_kib(mut self, memory_kib: u32) -> Self {
        self.memory_kib = memory_kib;
        self
    }

    /// How much memory it has.
    #[must_use]
    pub const fn memory_kib(&self) -> u32 {
        self.memory_kib
    }

    /// A standard VGA with 16 MiB of its own memory.
    #[must_use]
    pub const fn vga(mut self) -> Self {
        self.vga = "std";
        self
    }

    /// What runs in it: a load and its `key=value` parameters, between blanks.
    #[must_use]
    pub fn load(mut self, load: &str) -> Self {
        load.clone_into(&mut self.load);
        self
    }

    /// An application with its defaults; redis has a network card on the host's tap. A [`Self::load`] that
    /// begins with an application's name has its disk too.
    #[must_use]
    pub fn application(mut self, application: Application) -> Self {
        self.has_tap |= application == Application::Redis;
        self.load(application.name())
    }

    /// A raw disk image, which the guest writes and reads back all the time.
    #[must_use]
    pub fn disk(mut self, image: &Path) -> Self {
        self.disk = Some(image.to_path_buf());
        self
    }

    /// A network card on the host's tap.
    #[must_use]
    pub const fn tap(mut self) -> Self {
        self.has_tap = true;
        self
    }

    /// A QMP socket.
    #[must_use]
    pub fn qmp(mut self, socket: &Path) -> Self {
        self.qmp = Some(socket.to_path_buf());
        self
    }

    /// One more of QEMU's options, with its value.
    #[must_use]
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.options.extend([format!("-{name}"), value.to_owned()]);
        self
    }

    /// QEMU's program and arguments; what the guest prints goes to the file `serial`.
    ///
    /// # Errors
    /// The kernel, the initrd or the disk of applications cannot be had.
    pub fn argv(&self, serial: &Path) -> Result<Vec<String>> {
        self.argv_with(Accelerator::here()?, serial)
    }

    /// As [`Self::argv`], with an accelerator of the caller's choice.
    ///
    /// # Errors
    /// As for [`Self::argv`].
    pub fn argv_with(&self, accelerator: Accelerator, serial: &Path) -> Result<Vec<String>> {
        let (kernel, initrd) = kernel_and_initrd()?;
        let mut argv = vec![shown(&self.program)];
        let mut option = |name: &str, value: String| argv.extend([format!("-{name}"), value]);
        option("machine", self.machine.clone());
        option("accel", accelerator.name().to_owned());
        option("m", format!("{}k", self.memory_kib));
        option("smp", self.cpus.to_string());
        option("vga", self.vga.to_owned());
        option("display", "none".to_owned());
        option("kernel", shown(&kernel));
        option("initrd", shown(&initrd));
        option("append", self.kernel_command_line());
        option("serial", format!("file:{}", shown(serial)));
        if let Some(socket) = &self.qmp {
            option("qmp", format!("unix:{},server=on,wait=off", shown(socket)));
        }
        if let Some(image) = &self.disk {
            option(
                "drive",
                format!("file={},format=raw,if=none,id=disk0,cache=none", shown(image)),
            );
            option("device", "virtio-blk-pci,drive=disk0,id=vda".to_owned());
        }
        if Application::of_load(&self.load).is_some() {
            let image = shown(&applications()?);
            option("drive", format!("file={image},format=raw,if=none,id=apps,readonly=on"));
            option("device", "virtio-blk-pci,drive=apps,id=apps0".to_owned());
        }
        if self.has_tap {
            option("netdev", format!("tap,id=net0,ifname={TAP},script=no,downscript=no"));
            option("device", "virtio-net-pci,netdev=net0,mac=52:54:00:73:74:01".to_owned());
        }
        argv.extend(["-nodefaults", "-no-reboot"].map(str::to_owned));
        argv.extend(self.options.iter().cloned());
        Ok(argv)
    }

    /// The load's parameters are joined by commas there.
    fn kernel_command_line(&self) -> String {
        let load = self.load.split_whitespace().collect::<Vec<_>>().join(",");
        // A guest that waits for pages while the machine has too much to do is not damaged.
        let mut line = format!("console=ttyS0 quiet panic=-1 nosoftlockup load={load}");
        if self.disk.is_some() {
            line += " disk=check";
        }
        if self.has_tap {
            line += &format!(" ip={GUEST_ADDRESS}/24");
        }
        line
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
