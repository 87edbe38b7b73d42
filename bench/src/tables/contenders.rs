//! Who moves the guest: Sterna, and QEMU's own modes.

/// Who moves the guest.
#[derive(Debug)]
pub(crate) struct Contender {
    /// The name in files and tables.
    pub(crate) name: &'static str,
    /// What it is, in words.
    pub(crate) title: &'static str,
    /// How it is run.
    pub(crate) how: How,
    /// Whether "the best of stock" may be this one; an extra row is for information.
    pub(crate) standing: Standing,
}

impl Contender {
    /// Whether QEMU moves the guest by itself.
    pub(crate) const fn is_stock(&self) -> bool {
        matches!(self.how, How::Stock(_))
    }
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
    /// Two agents, `sterna follow`, and after a while `sterna switch`.
    Follow {
        /// What is left out, by its name in the agents' `[lab]`.
        without: &'static [&'static str],
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

/// One list of several. The number of all has to be given, and is checked when this is built.
pub(super) const fn joined<const N: usize>(
    groups: &[&[&'static Contender]],
) -> [&'static Contender; N] {
    let mut all = [groups[0][0]; N];
    let (mut count, mut group) = (0, 0);
    while group < groups.len() {
        let mut at = 0;
        while at < groups[group].len() {
            all[count] = groups[group][at];
            (count, at) = (count + 1, at + 1);
        }
        group += 1;
    }
    assert!(count == N, "a list has as many contenders as its groups");
    all
}

const PLAIN: StockMode = StockMode {
    capabilities: &[],
    parameters: "{}",
    switch: Switch::Converged,
    channel: Channel::Plain,
};

const fn stock(name: &'static str, title: &'static str, mode: StockMode) -> Contender {
    Contender { name, title, how: How::Stock(mode), standing: Standing::Competes }
}

pub(super) static OURS: Contender = Contender {
    name: "sterna",
    title: "Sterna (mutual TLS, defaults)",
    how: How::Sterna { options: &[] },
    standing: Standing::Competes,
};
pub(super) static OURS_THREE_STAGE: Contender = Contender {
    name: "sterna-three-stage",
    title: "Sterna, three-stage copy",
    how: How::Sterna { options: &["--strategy", "three-stage"] },
    standing: Standing::Extra,
};

/// It rolls back when it has not converged after as long as stock may try.
pub(super) static OURS_PRECOPY: Contender = Contender {
    name: "sterna-precopy",
    title: "Sterna, pre-copy only",
    how: How::Sterna { options: &["--strategy", "precopy", "--timeout", "40"] },
    standing: Standing::Extra,
};
/// The key of an agent's `[lab]` that leaves it out.
const PREDICTION: &str = "without_prediction";
const SLOW_START: &str = "without_slow_start";
const CONTENT_CHECK: &str = "without_content_check";

const fn follow(
    name: &'static str,
    title: &'static str,
    without: &'static [&'static str],
) -> Contender {
    Contender { name, title, how: How::Follow { without }, standing: Standing::Extra }
}

pub(super) static FOLLOW: Contender = Contender {
    standing: Standing::Competes,
    ..follow("sterna-follow", "Sterna, followed, then switched", &[])
};
pub(super) static FOLLOW_ALL_DIRTY: Contender = follow(
    "sterna-all-dirty",
    "the same, every dirty page whole, each second",
    &[PREDICTION, SLOW_START, CONTENT_CHECK],
);
pub(super) static FOLLOW_UNPREDICTED: Contender =
    follow("sterna-unpredicted", "the same without prediction", &[PREDICTION]);
pub(super) static FOLLOW_AT_ONCE: Contender =
    follow("sterna-at-once", "the same without slow start", &[SLOW_START]);
pub(super) static FOLLOW_UNCHECKED: Contender =
    follow("sterna-unchecked", "the same without content check", &[CONTENT_CHECK]);
pub(super) static OURS_UNCOMPRESSED: Contender = Contender {
    name: "sterna-uncompressed",
    title: "Sterna, `--compress none`",
    how: How::Sterna { options: &["--compress", "none"] },
    standing: Standing::Extra,
};
pub(super) static PRECOPY: Contender = stock("precopy", "stock pre-copy, cap = link rate", PLAIN);
pub(super) static PRECOPY_TLS: Contender =
    stock("precopy-tls", "stock pre-copy with TLS", StockMode { channel: Channel::Tls, ..PLAIN });
pub(super) static XBZRLE: Contender = stock(
    "xbzrle",
    "stock xbzrle, cache = RAM size",
    StockMode {
        capabilities: &["xbzrle"],
        parameters: r#"{"xbzrle-cache-size": 268435456}"#,
        ..PLAIN
    },
);
pub(super) static MULTIFD_ZSTD: Contender = stock(
    "multifd-zstd",
    "stock multifd with zstd, 4 channels",
    StockMode {
        capabilities: &["multifd"],
        parameters: r#"{"multifd-channels": 4, "multifd-compression": "zstd"}"#,
        ..PLAIN
    },
);
pub(super) static POSTCOPY: Contender = stock(
    "postcopy",
    "stock post-copy after the first pass",
    StockMode { capabilities: &["postcopy-ram"], switch: Switch::AfterFirstPass, ..PLAIN },
);
pub(super) static POSTCOPY_PREEMPT: Contender = stock(
    "postcopy-preempt",
    "stock post-copy after the first pass, preempt",
    StockMode {
        capabilities: &["postcopy-ram", "postcopy-preempt"],
        switch: Switch::AfterFirstPass,
        ..PLAIN
    },
);
pub(super) static AUTO_CONVERGE: Contender = stock(
    "auto-converge",
    "stock pre-copy, auto-converge",
    StockMode { capabilities: &["auto-converge"], ..PLAIN },
);
