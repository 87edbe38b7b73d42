//! What the tests run: Sterna's own binary, the guest's kernel, initrd and applications, QEMU in two
//! versions, and the accelerator that works here.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::command::{Running, tool_line, wait_for};
use crate::{Error, Guest, Result};

/// The first fetch goes through the network.
const FETCH_LIMIT: Duration = Duration::from_secs(600);
/// A kernel that boots under KVM says so long before.
const KVM_BOOT_LIMIT: Duration = Duration::from_secs(10);
/// QEMU as the distribution installs it.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// The repository's root.
#[must_use]
pub fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Where fetched and built files are.
#[must_use]
pub fn cache() -> PathBuf {
    repository().join("cache")
}

/// The binary under test: `STERNA_BIN`, or the one that was built beside this program.
///
/// # Errors
/// There is none.
pub fn sterna() -> Result<PathBuf> {
    if let Some(path) = env::var_os("STERNA_BIN") {
        return Ok(path.into());
    }
    let here = env::current_exe().map_err(Error::io("asking for this program's path"))?;
    let built = here.ancestors().map(|folder| folder.join("sterna")).find(|path| path.is_file());
    built.ok_or_else(|| Error::Unavailable("no binary `sterna`: cargo build --release".to_owned()))
}

/// Kernel and initrd of the test guest, fetched and built if need be. Links are resolved: an agent
/// follows none below the folders that it accepts.
///
/// # Errors
/// A script fails.
pub fn kernel_and_initrd() -> Result<(PathBuf, PathBuf)> {
    static BUILT: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let (kernel, initrd) = (cache().join("vmlinuz"), cache().join("guest.img"));
    let build = || {
        if kernel.exists() && initrd.exists() {
            return Ok(());
        }
        script("build-guest").map(drop).map_err(|error| error.to_string())
    };
    BUILT.get_or_init(build).clone().map_err(Error::Unavailable)?;
    let resolved = |path: PathBuf| {
        path.canonicalize().map_err(Error::io(format!("looking for {}", path.display())))
    };
    Ok((resolved(kernel)?, resolved(initrd)?))
}

/// The disk of applications, fetched and built if need be: a download of some 80 MB.
///
/// # Errors
/// A script fails.
pub fn applications() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let build = || {
        let path = cache().join("apps.img");
        if !path.exists() {
            script("build-apps").map_err(|error| error.to_string())?;
        }
        path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))
    };
    BUILT.get_or_init(build).clone().map_err(Error::Unavailable)
}

/// QEMU 10, fetched if need be.
///
/// # Errors
/// It cannot be had here; the script's words say why.
pub fn qemu10() -> Result<PathBuf> {
    static FETCHED: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let fetch = || {
        let path = cache().join("qemu10/qemu-system-x86_64");
        if !path.exists() {
            script("fetch-qemu10").map_err(|error| error.to_string())?;
        }
        path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))
    };
    FETCHED.get_or_init(fetch).clone().map_err(Error::Unavailable)
}

/// How QEMU runs a guest here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// In hardware.
    Kvm,
    /// Interpreted: everywhere, and slow.
    Tcg,
}

impl Accelerator {
    /// As QEMU's `-accel` names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The best one that really boots the guest here; tried once per boot of the machine.
    /// `STERNA_ACCEL` (`kvm`, `tcg`) decides without trying.
    ///
    /// # Errors
    /// The guest's kernel cannot be had.
    pub fn here() -> Result<Self> {
        static FOUND: OnceLock<Accelerator> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(*found);
        }
        let found = match env::var("STERNA_ACCEL").as_deref() {
            Ok("kvm") => Self::Kvm,
            Ok("tcg") => Self::Tcg,
            _ => remembered_or_tried()?,
        };
        Ok(*FOUND.get_or_init(|| found))
    }
}

/// A device file says little: where this machine is itself a guest, a kernel may not boot in it.
fn remembered_or_tried() -> Result<Accelerator> {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accelerator::Tcg);
    }
    let note = cache().join("accelerator");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let noted = fs::read_to_string(&note).unwrap_or_default();
    match noted.strip_prefix(&boot) {
        Some("kvm") => return Ok(Accelerator::Kvm),
        Some("tcg") => return Ok(Accelerator::Tcg),
        _ => {}
    }
    let found = if boots_under_kvm()? { Accelerator::Kvm } else { Accelerator::Tcg };
    fs::write(&note, format!("{boot}{}", found.name()))
        .map_err(Error::io(format!("writing {}", note.display())))?;
    Ok(found)
}

fn boots_under_kvm() -> Result<bool> {
    let serial = env::temp_dir().join(format!("sterna-e2e.kvm-{}", std::process::id()));
    let argv = Guest::new("kvm-probe").load("idle size=1M").argv_with(Accelerator::Kvm, &serial)?;
    let Some((program, arguments)) = argv.split_first() else { return Ok(false) };
    let mut qemu = Running::start(Command::new(program).args(arguments))?;
    let booted = wait_for("LOAD READY", KVM_BOOT_LIMIT, || {
        let text = fs::read_to_string(&serial).unwrap_or_default();
        let is_over = qemu.has_ended()?;
        Ok((text.contains("LOAD READY") || is_over).then_some(!is_over))
    });
    let _ = fs::remove_file(&serial);
    Ok(booted.unwrap_or(false))
}

fn script(name: &str) -> Result<()> {
    let path = repository().join("scripts").join(name);
    Running::start(&mut Command::new(path))?.wait(FETCH_LIMIT)?.success().map(drop)
}

/// Whether tests with guests can run here at all.
///
/// # Errors
/// Says what is missing.
pub(crate) fn check_machine() -> Result<()> {
    let missing = |what: &str| Err(Error::Unavailable(what.to_owned()));
    if tool_line("id", "-u")?.trim() != "0" {
        return missing("network namespaces need root");
    }
    if !Path::new(QEMU).exists() {
        return missing("no qemu-system-x86_64: scripts/install-deps");
    }
    if tool_line("ip", "netns list").is_err() {
        return missing("no network namespaces, or no iproute2: scripts/install-deps");
    }
    Ok(())
}
