//! The guests: what runs in them, and what their memory holds.

use sterna_e2e::Application;

/// A guest with its load.
#[derive(Debug)]
pub(crate) struct Load {
    /// Its name in files.
    pub(crate) name: &'static str,
    /// In words, with the content of the memory.
    pub(crate) title: &'static str,
    /// What runs.
    pub(crate) program: Program,
    /// Who talks to it while it is moved.
    pub(crate) client: Client,
    /// The guest's memory. Not a multiple of 256 KiB: see `sterna_e2e::Guest`.
    pub(crate) memory_kib: u32,
}

impl Load {
    /// Whether the guest works while it is moved.
    pub(crate) const fn is_busy(&self) -> bool {
        !matches!(self.client, Client::Nobody)
    }
}

/// What runs in a guest.
#[derive(Debug)]
pub(crate) enum Program {
    /// Our load program over a working set of pages, with its parameters.
    Pages(&'static str),
    /// A program as people use it.
    Application(Application),
    /// The same with parameters.
    ApplicationWith(Application, &'static str),
}

/// Who talks to a guest from outside. A client is a load too, on the guest and on this machine: an idle guest
/// is idle only without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// Nobody.
    Nobody,
    /// A datagram every millisecond, and its echo.
    Prober,
    /// Four that read and write values all the time, and check them.
    Redis,
}

/// 256 MiB, short of a multiple of 256 KiB.
const SMALL_KIB: u32 = 262_136;

const fn pages(name: &'static str, title: &'static str, parameters: &'static str) -> Load {
    let program = Program::Pages(parameters);
    Load { name, title, program, client: Client::Nobody, memory_kib: SMALL_KIB }
}

/// A guest that works is probed all the while.
const fn busy(name: &'static str, title: &'static str, parameters: &'static str) -> Load {
    Load { client: Client::Prober, ..pages(name, title, parameters) }
}

const fn application(name: &'static str, title: &'static str, which: Application) -> Load {
    Load { program: Program::Application(which), ..busy(name, title, "") }
}

pub(super) static IDLE: Load =
    pages("idle", "idle guest, next to nothing in its memory", "idle size=1M");
pub(super) static RANDOM: Load =
    pages("random", "idle guest with 64 MiB of random data", "idle size=64M");
pub(super) static PROBED: Load = busy(
    "probed",
    "64 MiB of random data, and a client that asks for an echo every millisecond",
    "idle size=64M",
);
pub(super) static RANDOM_SMALL: Load =
    pages("random", "idle guest with 16 MiB of random data", "idle size=16M");
pub(super) static SPARSE: Load = busy(
    "sparse",
    "20 MB/s of pages dirtied by 8-byte writes over 64 MiB of random data",
    "sparse size=64M rate=20M",
);
pub(super) static SPARSE_SMALL: Load = busy(
    "sparse",
    "4 MB/s of pages dirtied by 8-byte writes over 16 MiB of random data",
    "sparse size=16M rate=4M",
);
pub(super) static WRITER_BELOW: Load = busy(
    "writer-below",
    "random pages rewritten with random data at 5 MB/s over 64 MiB: below the link's rate",
    "uniform size=64M rate=5M",
);
pub(super) static WRITER_AT: Load = busy(
    "writer-at",
    "random pages rewritten with random data at 12 MB/s over 64 MiB: at the link's rate",
    "uniform size=64M rate=12M",
);
pub(super) static WRITER_ABOVE: Load = busy(
    "writer-above",
    "random pages rewritten with random data at 24 MB/s over 64 MiB: above the link's rate",
    "uniform size=64M rate=24M",
);
pub(super) static HOT_SET: Load = busy(
    "hotset",
    "24 MB/s of random pages, 90 % of them in 5 % of 64 MiB",
    "hotset size=64M rate=24M hot=5 share=90",
);
pub(super) static TEXT: Load =
    pages("text", "idle guest with 64 MiB of English-like text", "idle size=64M text=100");
pub(super) static TEXT_SMALL: Load =
    pages("text", "idle guest with 16 MiB of English-like text", "idle size=16M text=100");
pub(super) static DUPLICATES: Load = pages(
    "duplicates",
    "idle guest with 64 MiB of pages that equal one of 16",
    "idle size=64M duplicate=100",
);
pub(super) static LARGE: Load = Load {
    name: "large",
    title: "idle guest of 1 GiB with 256 MiB of random data and 256 MiB of text",
    program: Program::Pages("idle size=512M random=50 text=50"),
    client: Client::Nobody,
    memory_kib: 1_048_568,
};
pub(super) static EDIT: Load =
    application("edit", "vim, a text of a megabyte, somebody who types", Application::Edit);
pub(super) static AUDIO: Load =
    application("audio", "mp3 decoded in real time (mpg123)", Application::Audio);
pub(super) static VIDEO: Load =
    application("video", "VP8 decoded in real time (vpxdec)", Application::Video);
pub(super) static REDIS: Load = Load {
    client: Client::Redis,
    ..application("redis", "redis with 64 MiB of values under four clients", Application::Redis)
};
