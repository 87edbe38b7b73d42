//! The command line: which load, over how many pages, how fast, with which contents.
//!
//! `idle | uniform | hotset | sparse | rewrite | passes`, then `key=value` in any order. Sizes and rates
//! take the suffixes k, M, G (powers of 1024).

use crate::page::PAGE_BYTES;

/// What the load does to its pages once they are filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadKind {
    /// Writes nothing.
    Idle,
    /// Writes whole pages with new content, each page equally likely.
    Uniform,
    /// As uniform, but a small set of pages gets most of the writes.
    Hotset,
    /// Writes 8 bytes of each touched page.
    Sparse,
    /// Writes the content that a page already has: dirty without a change.
    Rewrite,
    /// Writes whole pages with new content from the first to the last, again and again, as memory tests do.
    Passes,
}

/// How fast pages are dirtied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rate {
    /// Bytes of dirtied pages per second; 0 writes nothing after the fill.
    BytesPerSecond(u64),
    /// As fast as the guest can.
    Max,
}

/// Shares of page contents in percent; what is left of 100 stays zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Incompressible pages.
    pub(crate) random: u8,
    /// Pages of English-like words.
    pub(crate) text: u8,
    /// Pages equal to one of 16 patterns.
    pub(crate) duplicate: u8,
}

/// Everything the command line can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// What is done to the pages.
    pub(crate) load: LoadKind,
    /// `size=`: pages in the working set (given in bytes, default 64M).
    pub(crate) pages: u32,
    /// `rate=`: default 20M, or `max`.
    pub(crate) rate: Rate,
    /// `random=`, `text=`, `duplicate=`: random gets what the others leave unless it is given.
    pub(crate) shares: Shares,
    /// `hot=`: percent of the pages that are hot (hotset only, default 5).
    pub(crate) hot_percent: u8,
    /// `share=`: percent of the writes that go to hot pages (hotset only, default 90).
    pub(crate) hot_share_percent: u8,
    /// `seed=`: default 1.
    pub(crate) seed: u64,
    /// `report=`: milliseconds between TICK lines, default 1000.
    pub(crate) report_ms: u64,
    /// `sweep=`: percent of the time spent on the sweep, default 10; 0 sweeps only on demand.
    pub(crate) sweep_percent: u8,
    /// `disk=check`: exercise /dev/vda too. Destroys its first 16 MiB.
    pub(crate) disk: DiskLoad,
}

/// What is done to the first disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskLoad {
    /// It is left alone.
    Untouched,
    /// Numbered blocks are written and read back.
    Check,
}

/// Why a command line is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OptionsError {
    /// No load was named.
    #[error(
        "no load named: expected idle, uniform, hotset, sparse, rewrite, passes or an application"
    )]
    NoLoad,
    /// The load is none of ours.
    #[error(
        "unknown load '{0}': expected idle, uniform, hotset, sparse, rewrite, passes, redis, edit, audio or video"
    )]
    UnknownLoad(String),
    /// An argument is not `key=value` with a known key.
    #[error("unknown argument '{0}'")]
    UnknownArgument(String),
    /// A value does not parse or is out of range.
    #[error("'{key}={found}': expected {expected}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// What was given.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The shares are more than the whole.
    #[error("random + text + duplicate is {0} percent: expected at most 100")]
    SharesAboveWhole(u16),
}

impl Options {
    /// Reads `LOAD [key=value…]`.
    ///
    /// # Errors
    /// Names the argument that is unknown or out of range.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, OptionsError> {
        let (load, rest) = arguments.split_first().ok_or(OptionsError::NoLoad)?;
        let mut options = Self::defaults(parse_load(load)?);
        let mut random = None;
        for argument in rest {
            let unknown = || OptionsError::UnknownArgument(argument.clone());
            let (key, value) = argument.split_once('=').ok_or_else(unknown)?;
            match key {
                "size" => options.pages = parse_pages("size", value)?,
                "rate" => options.rate = parse_rate(value)?,
                "random" => random = Some(parse_percent("random", value)?),
                "text" => options.shares.text = parse_percent("text", value)?,
                "duplicate" => options.shares.duplicate = parse_percent("duplicate", value)?,
                "hot" => options.hot_percent = parse_percent("hot", value)?,
                "share" => options.hot_share_percent = parse_percent("share", value)?,
                "sweep" => options.sweep_percent = parse_percent("sweep", value)?,
                "seed" => options.seed = parse_number("seed", value, 0)?,
                "report" => options.report_ms = parse_number("report", value, 10)?,
                "disk" => options.disk = parse_disk(value)?,
                _ => return Err(unknown()),
            }
        }
        options.shares.random = random_share(random, options.shares)?;
        Ok(options)
    }

    fn defaults(load: LoadKind) -> Self {
        Self {
            load,
            pages: 16384,
            rate: Rate::BytesPerSecond(20 << 20),
            shares: Shares { random: 0, text: 0, duplicate: 0 },
            hot_percent: 5,
            hot_share_percent: 90,
            seed: 1,
            report_ms: 1000,
            sweep_percent: 10,
            disk: DiskLoad::Untouched,
        }
    }
}

fn parse_load(name: &str) -> Result<LoadKind, OptionsError> {
    Ok(match name {
        "idle" => LoadKind::Idle,
        "uniform" => LoadKind::Uniform,
        "hotset" => LoadKind::Hotset,
        "sparse" => LoadKind::Sparse,
        "rewrite" => LoadKind::Rewrite,
        "passes" => LoadKind::Passes,
        other => return Err(OptionsError::UnknownLoad(other.to_owned())),
    })
}

pub(crate) fn parse_disk(value: &str) -> Result<DiskLoad, OptionsError> {
    if value == "check" {
        return Ok(DiskLoad::Check);
    }
    Err(OptionsError::BadValue { key: "disk", found: value.to_owned(), expected: "check" })
}

/// Whole pages, at least 16 (a hot set and 16 patterns must fit), at most 2^28 (1 TiB).
pub(crate) fn parse_pages(key: &'static str, value: &str) -> Result<u32, OptionsError> {
    let bytes = parse_bytes(value);
    let pages = bytes.and_then(|bytes| u32::try_from(bytes / PAGE_BYTES as u64).ok());
    pages.filter(|pages| (16..=1 << 28).contains(pages)).ok_or_else(|| OptionsError::BadValue {
        key,
        found: value.to_owned(),
        expected: "a size of 64k to 1024G",
    })
}

fn parse_rate(value: &str) -> Result<Rate, OptionsError> {
    if value == "max" {
        return Ok(Rate::Max);
    }
    let bytes = parse_bytes(value).filter(|bytes| *bytes <= 1 << 40);
    bytes.map(Rate::BytesPerSecond).ok_or_else(|| OptionsError::BadValue {
        key: "rate",
        found: value.to_owned(),
        expected: "bytes per second up to 1024G, or max",
    })
}

pub(crate) fn parse_bytes(value: &str) -> Option<u64> {
    let (digits, shift) = match value.as_bytes().last()? {
        b'k' | b'K' => (&value[..value.len() - 1], 10),
        b'm' | b'M' => (&value[..value.len() - 1], 20),
        b'g' | b'G' => (&value[..value.len() - 1], 30),
        _ => (value, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn parse_percent(key: &'static str, value: &str) -> Result<u8, OptionsError> {
    value.parse::<u8>().ok().filter(|percent| *percent <= 100).ok_or_else(|| {
        OptionsError::BadValue { key, found: value.to_owned(), expected: "a percentage" }
    })
}

pub(crate) fn parse_number(
    key: &'static str,
    value: &str,
    least: u64,
) -> Result<u64, OptionsError> {
    value.parse::<u64>().ok().filter(|number| *number >= least).ok_or_else(|| {
        OptionsError::BadValue { key, found: value.to_owned(), expected: "a number in range" }
    })
}

fn random_share(given: Option<u8>, others: Shares) -> Result<u8, OptionsError> {
    let taken = u16::from(others.text) + u16::from(others.duplicate);
    let sum = taken + u16::from(given.unwrap_or(0));
    if sum > 100 {
        return Err(OptionsError::SharesAboveWhole(sum));
    }
    Ok(given.unwrap_or(100 - others.text - others.duplicate))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, OptionsError> {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Options::parse(&arguments)
    }

    #[test]
    fn reads_a_whole_line() {
        let options = parse("hotset size=1M rate=max text=30 duplicate=20 hot=2 seed=9").unwrap();
        assert_eq!(options.load, LoadKind::Hotset);
        assert_eq!(options.pages, 256);
        assert_eq!(options.rate, Rate::Max);
        assert_eq!(options.shares, Shares { random: 50, text: 30, duplicate: 20 });
        assert_eq!((options.hot_percent, options.hot_share_percent, options.seed), (2, 90, 9));
    }

    #[test]
    fn a_given_random_share_leaves_the_rest_zero() {
        let options = parse("idle random=10 text=20").unwrap();
        assert_eq!(options.shares, Shares { random: 10, text: 20, duplicate: 0 });
    }

    #[test]
    fn refuses_by_name() {
        assert_eq!(parse("idle random=60 text=50"), Err(OptionsError::SharesAboveWhole(110)));
        assert_eq!(parse("busy"), Err(OptionsError::UnknownLoad("busy".to_owned())));
        assert_eq!(parse("idle rat=1"), Err(OptionsError::UnknownArgument("rat=1".to_owned())));
        for line in ["idle size=1k", "idle size=x", "idle rate=-1", "idle size=", "idle text=101"] {
            assert!(matches!(parse(line), Err(OptionsError::BadValue { .. })), "{line}");
        }
    }
}
