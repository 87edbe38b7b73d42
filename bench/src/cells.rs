//! The tables: what is measured, who is measured, and what is aimed at.

use std::time::Duration;

/// A guest with a load over a link, and who moves it.
#[derive(Debug)]
pub(crate) struct Cell {
    /// Its name in files and tables.
    pub(crate) name: &'static str,
    /// What is moved over what, in words.
    pub(crate) title: &'static str,
    /// The guest's load, as in its command line.
    pub(crate) load: &'static str,
    /// The wire's rate in each direction; none: as fast as the machine can.
    pub(crate) link: Option<&'static str>,
    /// Runs of each contender.
    pub(crate) runs: u32,
    /// Who moves it, in this order in every round.
    pub(crate) contenders: &'static [Contender],
    /// What Sterna is to reach here.
    pub(crate) aims: &'static [Aim],
}

/// Who moves the guest.
#[derive(Debug)]
pub(crate) struct Contender {
    /// The name in files and tables.
    pub(crate) name: &'static str,
    /// What it is, in words.
    pub(crate) title: &'static str,
    /// How it is run.
    pub(crate) how: How,
    /// At most so many runs: what never ends need not be shown five times.
    pub(crate) most_runs: u32,
    /// Whether "the best of stock" may be this one; an extra row is for information.
    pub(crate) standing: Standing,
}

/// See [`Contender::standing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It competes.
    Competes,
    /// It is shown.
    Extra,
}

/// How a contender is run.
#[derive(Debug)]
pub(crate) enum How {
    /// Two agents and `sterna migrate` with these options.
    Sterna {
        /// Options of `migrate`.
        options: &'static [&'static str],
    },
    /// QEMU's own migration.
    Stock(StockMode),
}

/// A mode of QEMU's own migration.
#[derive(Debug)]
pub(crate) struct StockMode {
    /// Capabilities that are switched on at both ends.
    pub(crate) capabilities: &'static [&'static str],
    /// Parameters at both ends, beside the bandwidth: JSON.
    pub(crate) parameters: &'static str,
    /// Whether the guest goes over after the first pass.
    pub(crate) switch: Switch,
    /// Whether the stream is encrypted.
    pub(crate) channel: Channel,
    /// When to give up.
    pub(crate) limit: Duration,
}

/// When a stock migration goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// When QEMU finds that the rest fits its downtime limit (300 ms by default).
    Converged,
    /// `migrate-start-postcopy` at the start of the second pass.
    AfterFirstPass,
}

/// How a stock stream travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    /// As it is.
    Plain,
    /// TLS with certificates at both ends.
    Tls,
}

/// Something measured, of which less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// From the command until the source may be destroyed.
    TotalMs,
    /// The guest stopped at the source until running at the destination.
    DowntimeMs,
    /// Bytes on the wire, both directions, headers included.
    Bytes,
    /// Anonymous memory of the larger agent.
    AgentBytes,
}

/// Something that is to be reached by the median of Sterna's runs.
#[derive(Debug)]
pub(crate) enum Aim {
    /// At most so much.
    AtMost(Metric, f64),
    /// At most so many times the best competing stock mode that completed.
    AtMostTimesBest(Metric, f64),
    /// Every run completes without post-copy.
    CompletesByPrecopy,
}

/// The contender that the others are compared with.
pub(crate) const STERNA: &str = "sterna";

/// Agents may use 64 MiB and 1 % of the guest's 262,136 KiB.
const AGENT_LIMIT_BYTES: f64 = 64.0 * 1048576.0 + 0.01 * 262_136.0 * 1024.0;
/// How long stock may try what it can do.
const LIMIT: Duration = Duration::from_secs(120);
/// How long it may try what it cannot.
const HOPELESS_LIMIT: Duration = Duration::from_secs(60);

const PRECOPY: StockMode = StockMode {
    capabilities: &[],
    parameters: "{}",
    switch: Switch::Converged,
    channel: Channel::Plain,
    limit: LIMIT,
};

const fn sterna() -> Contender {
    Contender {
        name: STERNA,
        title: "Sterna (mutual TLS, defaults)",
        how: How::Sterna { options: &[] },
        most_runs: u32::MAX,
        standing: Standing::Competes,
    }
}

const fn stock(name: &'static str, title: &'static str, mode: StockMode) -> Contender {
    let how = How::Stock(mode);
    Contender { name, title, how, most_runs: u32::MAX, standing: Standing::Competes }
}

const fn precopy() -> Contender {
    stock("precopy", "stock pre-copy, cap = link rate", PRECOPY)
}

/// The cells.
pub(crate) const CELLS: &[Cell] = &[
    Cell {
        name: "gigabit-idle",
        title: "1 Gbit/s, idle guest with 64 MiB of random data",
        load: "idle size=64M",
        link: Some("1G"),
        runs: 5,
        contenders: &[
            sterna(),
            precopy(),
            stock(
                "multifd-zstd",
                "stock multifd with zstd, 4 channels",
                StockMode {
                    capabilities: &["multifd"],
                    parameters: r#"{"multifd-channels": 4, "multifd-compression": "zstd"}"#,
                    ..PRECOPY
                },
            ),
        ],
        aims: &[
            Aim::AtMost(Metric::DowntimeMs, 20.0),
            Aim::AtMostTimesBest(Metric::TotalMs, 1.0),
            Aim::AtMost(Metric::AgentBytes, AGENT_LIMIT_BYTES),
        ],
    },
    Cell {
        name: "slow-sparse",
        title: "100 Mbit/s, 20 MB/s of pages dirtied by 8-byte writes over 64 MiB",
        load: "sparse size=64M rate=20M",
        link: Some("100M"),
        runs: 3,
        contenders: &[
            sterna(),
            stock(
                "xbzrle",
                "stock xbzrle, cache = RAM size",
                StockMode {
                    capabilities: &["xbzrle"],
                    parameters: r#"{"xbzrle-cache-size": 268435456}"#,
                    ..PRECOPY
                },
            ),
            stock(
                "postcopy",
                "stock post-copy after the first pass",
                StockMode {
                    capabilities: &["postcopy-ram"],
                    switch: Switch::AfterFirstPass,
                    ..PRECOPY
                },
            ),
            Contender {
                most_runs: 1,
                ..stock(
                    "precopy",
                    "stock pre-copy, cap = link rate",
                    StockMode { limit: HOPELESS_LIMIT, ..PRECOPY },
                )
            },
        ],
        aims: &[
            Aim::CompletesByPrecopy,
            Aim::AtMostTimesBest(Metric::Bytes, 0.6),
            Aim::AtMost(Metric::AgentBytes, AGENT_LIMIT_BYTES),
        ],
    },
    Cell {
        name: "unshaped-idle",
        title: "unshaped, idle guest with 64 MiB of random data",
        load: "idle size=64M",
        link: None,
        runs: 5,
        contenders: &[
            sterna(),
            stock("precopy", "stock pre-copy, no cap, no TLS", PRECOPY),
            Contender {
                standing: Standing::Extra,
                ..stock(
                    "precopy-tls",
                    "stock pre-copy, no cap, TLS",
                    StockMode { channel: Channel::Tls, ..PRECOPY },
                )
            },
        ],
        aims: &[
            Aim::AtMostTimesBest(Metric::TotalMs, 1.3),
            Aim::AtMost(Metric::AgentBytes, AGENT_LIMIT_BYTES),
        ],
    },
];
