//! Commands on the machine: does it run, what is it made of. Thin: each is one QMP command and its result.

use serde::Deserialize;
use serde_json::{Value, json};
use sterna_model::Uuid;

use super::{Qmp, QmpError, Version};

/// QEMU's run states, as far as a migration has to tell them apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum RunState {
    /// The guest runs.
    Running,
    /// Stopped by `stop`.
    Paused,
    /// Loaded or never started (`-S`).
    Prelaunch,
    /// Waits for an incoming migration.
    InMigrate,
    /// A migration is in its last pass.
    FinishMigrate,
    /// A migration completed here; `cont` resumes.
    PostMigrate,
    /// The guest shut down.
    Shutdown,
    /// Suspended to RAM by the guest.
    Suspended,
    /// The guest panicked.
    GuestPanicked,
    /// Stopped by an I/O error.
    IoError,
    /// Stopped by an internal error.
    InternalError,
    /// Stopped by a watchdog.
    Watchdog,
    /// Any other, by its name.
    Other(String),
    /// QEMU said none.
    #[default]
    Unsaid,
}

impl From<String> for RunState {
    fn from(name: String) -> Self {
        match name.as_str() {
            "running" => Self::Running,
            "paused" => Self::Paused,
            "prelaunch" => Self::Prelaunch,
            "inmigrate" => Self::InMigrate,
            "finish-migrate" => Self::FinishMigrate,
            "postmigrate" => Self::PostMigrate,
            "shutdown" => Self::Shutdown,
            "suspended" => Self::Suspended,
            "guest-panicked" => Self::GuestPanicked,
            "io-error" => Self::IoError,
            "internal-error" => Self::InternalError,
            "watchdog" => Self::Watchdog,
            _ => Self::Other(super::error::shortened(&name)),
        }
    }
}

/// Whether the guest runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// That its processors execute.
    pub running: bool,
    /// Why or why not.
    pub status: RunState,
}

/// What executes the guest's processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// The host's kernel.
    Kvm,
    /// Anything else: TCG, as far as x86 on Linux goes.
    Tcg,
}

/// A virtual processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Cpu {
    /// Its number.
    pub cpu_index: u32,
    /// The host's thread that runs it.
    pub thread_id: i64,
    /// Its path for [`Qmp::qom_get`].
    pub qom_path: String,
    /// The architecture (`x86_64`).
    pub target: String,
}

/// A machine type that this QEMU can be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Machine {
    /// Its name (`pc-i440fx-7.2`).
    pub name: String,
    /// Another name of it (`pc`).
    pub alias: Option<String>,
    /// That it is what QEMU takes when nothing is said.
    pub is_default: bool,
    /// The name of its main RAM block (`pc.ram`).
    pub default_ram_id: Option<String>,
}

/// A memory backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MemoryBackend {
    /// Its id, which is the name of its RAM block as well.
    pub id: Option<String>,
    /// In bytes.
    pub size: u64,
    /// That it is mapped shared.
    pub share: bool,
}

/// A plugged memory device (DIMM, NVDIMM, virtio-mem, virtio-pmem).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MemoryDevice {
    /// Its kind (`dimm`, `virtio-mem`).
    #[serde(rename = "type")]
    pub kind: String,
    /// What is known of it.
    pub data: MemoryDeviceData,
}

/// What is known of a memory device; each kind has only some of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MemoryDeviceData {
    /// The device's id.
    pub id: Option<String>,
    /// Its backend's path among QEMU's objects.
    pub memdev: String,
    /// In bytes.
    pub size: u64,
}

/// A block device of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BlockDevice {
    /// The old style name (`-drive id=`); empty where it has none.
    pub device: String,
    /// The device's path or id.
    pub qdev: Option<String>,
    /// That the medium can be taken out.
    pub removable: bool,
    /// The medium.
    pub inserted: Option<Inserted>,
}

/// A medium in a block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Inserted {
    /// The file, as QEMU names it (`json:…` where it is more than one).
    pub file: String,
    /// The node.
    #[serde(rename = "node-name")]
    pub node_name: Option<String>,
    /// The format's driver.
    pub drv: String,
    /// Read only.
    pub ro: bool,
    /// The image.
    pub image: Image,
}

/// The size of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Image {
    /// What the guest sees, in bytes.
    pub virtual_size: u64,
    /// What it takes on the host, in bytes.
    pub actual_size: Option<u64>,
}

/// Each fails as [`Qmp::execute`] does.
impl Qmp {
    /// Whether the guest runs.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_status(&self) -> Result<Status, QmpError> {
        self.ask("query-status", Value::Null).await
    }

    /// Stops the guest. When this returns it has stopped.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.tell("stop", Value::Null).await
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.tell("cont", Value::Null).await
    }

    /// Ends QEMU. It answers first; wait for the process.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn quit(&self) -> Result<(), QmpError> {
        self.tell("quit", Value::Null).await
    }

    /// Presses the guest's power button.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.tell("system_powerdown", Value::Null).await
    }

    /// The VM's UUID; all zeros where none was given.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_uuid(&self) -> Result<Uuid, QmpError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Reply {
            #[serde(rename = "UUID")]
            uuid: String,
        }
        let reply: Reply = self.ask("query-uuid", Value::Null).await?;
        reply.uuid.parse().map_err(|_| QmpError::protocol("a UUID", &reply.uuid))
    }

    /// The VM's name (`-name`), if it has one.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_name(&self) -> Result<Option<String>, QmpError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Reply {
            name: Option<String>,
        }
        self.ask("query-name", Value::Null).await.map(|reply: Reply| reply.name)
    }

    /// The virtual processors.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_cpus_fast(&self) -> Result<Vec<Cpu>, QmpError> {
        self.ask("query-cpus-fast", Value::Null).await
    }

    /// What executes the guest.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_kvm(&self) -> Result<Accelerator, QmpError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Reply {
            enabled: bool,
        }
        let reply: Reply = self.ask("query-kvm", Value::Null).await?;
        Ok(if reply.enabled { Accelerator::Kvm } else { Accelerator::Tcg })
    }

    /// QEMU's version.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_version(&self) -> Result<Version, QmpError> {
        self.ask("query-version", Value::Null).await
    }

    /// A property of an object.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn qom_get(&self, path: &str, property: &str) -> Result<Value, QmpError> {
        self.ask("qom-get", json!({ "path": path, "property": property })).await
    }

    /// The plugged memory devices.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_memory_devices(&self) -> Result<Vec<MemoryDevice>, QmpError> {
        self.ask("query-memory-devices", Value::Null).await
    }

    /// The memory backends.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_memdev(&self) -> Result<Vec<MemoryBackend>, QmpError> {
        self.ask("query-memdev", Value::Null).await
    }

    /// The guest's block devices.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_block(&self) -> Result<Vec<BlockDevice>, QmpError> {
        self.ask("query-block", Value::Null).await
    }

    /// The machine types that this QEMU can be.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_machines(&self) -> Result<Vec<Machine>, QmpError> {
        self.ask("query-machines", Value::Null).await
    }

    /// Announces the guest's network cards, so that switches learn where it is now: five packets, 50 ms and more apart.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn announce_self(&self) -> Result<(), QmpError> {
        let pace = json!({ "initial": 50, "max": 550, "rounds": 5, "step": 50 });
        self.tell("announce-self", pace).await
    }
}
