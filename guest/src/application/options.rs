//! The command line of an application: `redis | edit | audio | video`, then `key=value`.
//!
//! `report=` (milliseconds between TICK lines), `seed=`, `disk=check` and `ballast=` (bytes of random data that
//! other programs would hold, none by default) are for all of them; `size=` (bytes of values) is for redis,
//! `rate=` (edits per second) for the editor, `pass=` (seconds that a pass is to take) for both.

use std::time::Duration;

use super::value::VALUE_BYTES;
use crate::options::{DiskLoad, OptionsError, parse_bytes, parse_disk, parse_number, parse_pages};

/// Which application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Application {
    /// A redis server, for clients from outside.
    Redis,
    /// An editor with somebody typing.
    Edit,
    /// A player of sound.
    Audio,
    /// A player of pictures.
    Video,
}

/// Everything that can be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApplicationOptions {
    /// Which one.
    pub(crate) application: Application,
    /// Between TICK lines; default 1 s.
    pub(crate) report: Duration,
    /// For what is drawn by chance; default 1.
    pub(crate) seed: u64,
    /// Values in the redis server; default 64 MiB of them.
    pub(crate) keys: u32,
    /// Edits per second; default 8.
    pub(crate) edits_per_second: u32,
    /// How long a pass is to take; default 6 s, for the values of a server 10 s.
    pub(crate) pass: Duration,
    /// What is done to the first disk beside that.
    pub(crate) disk: DiskLoad,
    /// Pages of random data that are held beside that, and not touched.
    pub(crate) ballast_pages: u32,
}

impl ApplicationOptions {
    /// Reads the command line if it names an application.
    ///
    /// # Errors
    /// Names the argument that is unknown or out of range.
    pub(crate) fn parse(arguments: &[String]) -> Option<Result<Self, OptionsError>> {
        let (name, rest) = arguments.split_first()?;
        let application = match name.as_str() {
            "redis" => Application::Redis,
            "edit" => Application::Edit,
            "audio" => Application::Audio,
            "video" => Application::Video,
            _ => return None,
        };
        Some(Self::parse_keys(application, rest))
    }

    fn parse_keys(application: Application, rest: &[String]) -> Result<Self, OptionsError> {
        let (is_redis, is_edit) =
            (application == Application::Redis, application == Application::Edit);
        let mut options = Self::defaults(application);
        for argument in rest {
            let unknown = || OptionsError::UnknownArgument(argument.clone());
            let (key, value) = argument.split_once('=').ok_or_else(unknown)?;
            match key {
                "report" => options.report = Duration::from_millis(ranged("report", value, 10)?),
                "seed" => options.seed = parse_number("seed", value, 0)?,
                "disk" => options.disk = parse_disk(value)?,
                "ballast" => options.ballast_pages = parse_pages("ballast", value)?,
                "size" if is_redis => options.keys = parse_size(value)?,
                "rate" if is_edit => {
                    let rate = ranged("rate", value, 1)?.min(50);
                    options.edits_per_second = u32::try_from(rate).unwrap_or(50);
                }
                "pass" if is_redis || is_edit => {
                    options.pass = Duration::from_secs(ranged("pass", value, 1)?);
                }
                _ => return Err(unknown()),
            }
        }
        Ok(options)
    }

    fn defaults(application: Application) -> Self {
        Self {
            application,
            report: Duration::from_secs(1),
            seed: 1,
            keys: 65536,
            edits_per_second: 8,
            pass: Duration::from_secs(if application == Application::Redis { 10 } else { 6 }),
            disk: DiskLoad::Untouched,
            ballast_pages: 0,
        }
    }
}

/// At most a million: milliseconds or seconds beyond that are a mistake.
fn ranged(key: &'static str, value: &str, least: u64) -> Result<u64, OptionsError> {
    let number = parse_number(key, value, least)?;
    if number <= 1_000_000 {
        return Ok(number);
    }
    Err(OptionsError::BadValue { key, found: value.to_owned(), expected: "at most 1000000" })
}

/// A value is a little less than a KiB; a guest of 256 MiB has room for 128 MiB of them.
fn parse_size(value: &str) -> Result<u32, OptionsError> {
    let keys = parse_bytes(value).map(|bytes| bytes / 1024);
    let keys = keys.and_then(|keys| u32::try_from(keys).ok());
    keys.filter(|keys| (1024..=131_072).contains(keys)).ok_or_else(|| OptionsError::BadValue {
        key: "size",
        found: value.to_owned(),
        expected: "1M to 128M",
    })
}

/// A value and what the server keeps with it must fit the KiB that it is counted as.
const _: () = assert!(VALUE_BYTES < 1024 - 8);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Result<ApplicationOptions, OptionsError>> {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        ApplicationOptions::parse(&arguments)
    }

    #[test]
    fn reads_what_an_application_understands() {
        let redis = parse("redis size=2M report=100 pass=3").unwrap().unwrap();
        assert_eq!((redis.application, redis.keys), (Application::Redis, 2048));
        assert_eq!(
            (redis.report, redis.pass),
            (Duration::from_millis(100), Duration::from_secs(3))
        );
        assert_eq!(parse("edit rate=4").unwrap().unwrap().edits_per_second, 4);
        assert_eq!(parse("video ballast=1M").unwrap().unwrap().ballast_pages, 256);
        assert_eq!(parse("uniform size=2M"), None);
    }

    #[test]
    fn refuses_what_belongs_to_another() {
        for line in ["video size=2M", "audio rate=4", "redis rate=4", "edit hot=3", "video pass=2"]
        {
            assert!(matches!(parse(line), Some(Err(OptionsError::UnknownArgument(_)))), "{line}");
        }
        for line in ["redis size=1k", "edit rate=0", "video report=9999999", "audio disk=x"] {
            assert!(matches!(parse(line), Some(Err(OptionsError::BadValue { .. }))), "{line}");
        }
    }
}
