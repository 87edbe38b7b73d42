//! The configuration: one file and its drop-ins, read once, checked as a whole, with line and column for what is wrong.
//!
//! What stands in the files is [`Written`], every key optional; what the agent works with is [`Config`], every value there
//! and every path absolute. Drop-ins (`conf.d/*.toml` beside the file, in the order of their names) override it key by
//! key; peers and paths are added.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sterna_host::dirs::Dirs;
use sterna_host::tls::CrlFile;
use sterna_model::{ByteCount, HostName, Rate};
use sterna_wire::limits::{MAX_KEEP_MS, MAX_LINK_TIMEOUT_MS};

/// The TCP port that agents listen on.
pub const DEFAULT_PORT: u16 = 7837;

/// What the agent works with.
#[derive(Clone, Debug)]
pub struct Config {
    /// This host's name, as its certificate says it.
    pub name: HostName,
    /// Where peers connect to.
    pub listen: SocketAddr,
    /// Where clients connect to.
    pub control: PathBuf,
    /// What survives a reboot: journals and the VM registry.
    pub state_dir: PathBuf,
    /// What does not: sockets.
    pub run_dir: PathBuf,
    /// Certificates.
    pub tls: TlsPaths,
    /// Hosts that we know.
    pub peers: BTreeMap<HostName, Peer>,
    /// A source's path to ours, as written; the longest prefix wins.
    pub paths: Vec<(String, String)>,
    /// What a VM that arrives may use.
    pub accept: Accept,
    /// Bounds.
    pub limits: Limits,
    /// What following leaves out. For measurements only.
    pub lab: Lab,
}

/// What following leaves out, so that a measurement shows what it is good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lab {
    /// Every stale page is sent, however soon it will be dirtied again.
    pub without_prediction: bool,
    /// As many pages as there are are sent, each second.
    pub without_slow_start: bool,
    /// A dirty page is sent whole, whatever the destination has.
    pub without_content_check: bool,
}

/// Certificate files.
#[derive(Clone, Debug)]
pub struct TlsPaths {
    /// The authority that both ends trust.
    pub ca: PathBuf,
    /// This host's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificates that are revoked.
    pub crl: CrlFile,
}

/// A host that we know.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// `host:port`.
    pub address: String,
    /// It may send VMs to us.
    #[serde(default)]
    pub accept: bool,
}

/// What a VM that arrives may use.
#[derive(Clone, Debug, Default)]
pub struct Accept {
    /// Folders that its files lie in; `None`: what this host's own VMs use.
    pub roots: Option<Vec<PathBuf>>,
    /// QEMU options beyond the built-in list.
    pub options: Vec<String>,
    /// Folders whose files are the source's own, where that cannot be seen from here.
    pub shared: Vec<PathBuf>,
}

/// Bounds on what the agent takes on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// On the wire, for all jobs that do not ask for less.
    pub bandwidth: Option<Rate>,
    /// Jobs at a time.
    pub jobs: usize,
    /// The largest VM that is accepted.
    pub largest_vm: ByteCount,
    /// Contents that a source may hold where it cannot read guest memory from outside.
    pub memory_budget: ByteCount,
    /// How long a silent link is ridden out while the guest runs.
    pub link_timeout: Duration,
    /// How long what has arrived of a guest is kept while its source is away.
    pub keep_copy: Duration,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error("cannot read the configuration {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("in the configuration {path}: {error}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why, with line and column.
        error: Box<toml::de::Error>,
    },
    /// A key of more parts than any table here has.
    #[error(
        "in the configuration {path}: line {line}: expected a key of a few parts, found one of too many"
    )]
    DeepKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A value that makes no sense.
    #[error("in the configuration {path}: {key}: expected {expected}, found {found:?}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A value that must be given.
    #[error("in the configuration {path}: expected {key}, found none; add `{example}`")]
    Absent {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What could be written.
        example: &'static str,
    },
}

/// A file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    host: WrittenHost,
    tls: WrittenTls,
    peers: BTreeMap<HostName, Peer>,
    paths: BTreeMap<String, String>,
    accept: WrittenAccept,
    limits: WrittenLimits,
    lab: Option<Lab>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenHost {
    name: Option<HostName>,
    listen: Option<String>,
    control: Option<PathBuf>,
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenTls {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    crl: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenAccept {
    roots: Option<Vec<PathBuf>>,
    options: Option<Vec<String>>,
    shared: Option<Vec<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenLimits {
    bandwidth: Option<String>,
    jobs: Option<usize>,
    largest_vm: Option<String>,
    memory_budget: Option<String>,
    link_timeout: Option<u64>,
    keep_copy: Option<u64>,
}

impl Config {
    /// Reads a configuration and its drop-ins.
    ///
    /// # Errors
    /// When a file cannot be read, has an unknown key or a wrong value (with line and column), or lacks what has no
    /// default.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut written = Written::read(path)?;
        for drop_in in drop_ins(path)? {
            written.override_by(Written::read(&drop_in)?);
        }
        written.check(path, &Dirs::of_this_user(), &resolve)
    }

    /// The configuration in a file's text and in those of its drop-ins, in their order; paths are for messages and to start
    /// relative paths from. Nothing is opened and no name is looked up: `resolve` does that for `host.listen`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_texts(
        (path, text): (&Path, &str),
        drop_ins: &[(&Path, &str)],
        resolve: &dyn Fn(&str) -> Option<SocketAddr>,
    ) -> Result<Self, ConfigError> {
        let mut written = Written::parse(path, text)?;
        for (path, text) in drop_ins {
            written.override_by(Written::parse(path, text)?);
        }
        written.check(path, &Dirs::of_this_user(), resolve)
    }
}

impl Written {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let read = std::fs::read_to_string(path);
        let text = read.map_err(|error| ConfigError::Read { path: path.into(), error })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error: toml::de::Error| match error.span() {
            Some(_) => ConfigError::Syntax { path: path.into(), error: Box::new(error) },
            None => ConfigError::DeepKey { path: path.into(), line: line_of_deep_key(text) },
        })
    }

    fn override_by(&mut self, other: Self) {
        fn take<T>(ours: &mut Option<T>, theirs: Option<T>) {
            *ours = theirs.or(ours.take());
        }
        take(&mut self.host.name, other.host.name);
        take(&mut self.host.listen, other.host.listen);
        take(&mut self.host.control, other.host.control);
        take(&mut self.host.state_dir, other.host.state_dir);
        take(&mut self.tls.ca, other.tls.ca);
        take(&mut self.tls.cert, other.tls.cert);
        take(&mut self.tls.key, other.tls.key);
        take(&mut self.tls.crl, other.tls.crl);
        self.peers.extend(other.peers);
        self.paths.extend(other.paths);
        take(&mut self.accept.roots, other.accept.roots);
        take(&mut self.accept.options, other.accept.options);
        take(&mut self.accept.shared, other.accept.shared);
        take(&mut self.limits.bandwidth, other.limits.bandwidth);
        take(&mut self.limits.jobs, other.limits.jobs);
        take(&mut self.limits.largest_vm, other.limits.largest_vm);
        take(&mut self.limits.memory_budget, other.limits.memory_budget);
        take(&mut self.limits.link_timeout, other.limits.link_timeout);
        take(&mut self.lab, other.lab);
        take(&mut self.limits.keep_copy, other.limits.keep_copy);
    }

    fn check(
        self,
        path: &Path,
        dirs: &Dirs,
        resolve: &dyn Fn(&str) -> Option<SocketAddr>,
    ) -> Result<Config, ConfigError> {
        let file = absolute(path);
        let folder = file.parent().unwrap_or(Path::new("/"));
        let place = |given: Option<PathBuf>, default: PathBuf| {
            given.map_or(default, |given| folder.join(given))
        };
        let Some(name) = self.host.name else {
            let example = "[host] name = \"alpha\"";
            return Err(ConfigError::Absent { path: path.into(), key: "host.name", example });
        };
        let listen = self.host.listen.unwrap_or_else(|| format!("0.0.0.0:{DEFAULT_PORT}"));
        let folders = |written: Vec<PathBuf>| -> Vec<PathBuf> {
            written.iter().map(|written| folder.join(written)).collect()
        };
        let control = place(self.host.control, dirs.runtime.join("sterna.sock"));
        let ca = place(self.tls.ca, dirs.config.join("pki/ca-cert.pem"));
        let crl = match self.tls.crl {
            Some(given) => CrlFile::Required(folder.join(given)),
            None => CrlFile::beside(&ca),
        };
        let run_dir = control.parent().unwrap_or(&dirs.runtime).to_path_buf();
        Ok(Config {
            name,
            listen: resolve(&listen).ok_or_else(|| ConfigError::Value {
                path: path.into(),
                key: "host.listen",
                expected: "address:port",
                found: listen.clone(),
            })?,
            control,
            state_dir: place(self.host.state_dir, dirs.state.clone()),
            run_dir,
            tls: TlsPaths {
                ca,
                crl,
                cert: place(self.tls.cert, dirs.config.join("pki/server-cert.pem")),
                key: place(self.tls.key, dirs.config.join("pki/server-key.pem")),
            },
            peers: self.peers,
            paths: self.paths.into_iter().collect(),
            accept: Accept {
                roots: self.accept.roots.map(folders),
                options: self.accept.options.unwrap_or_default(),
                shared: folders(self.accept.shared.unwrap_or_default()),
            },
            limits: self.limits.check(path)?,
            lab: self.lab.unwrap_or_default(),
        })
    }
}

impl WrittenLimits {
    fn check(self, path: &Path) -> Result<Limits, ConfigError> {
        let wrong =
            |key, expected, found| ConfigError::Value { path: path.into(), key, expected, found };
        let size = |key, text: Option<String>, default| match text {
            None => Ok(ByteCount(default)),
            Some(text) => {
                parse_size(&text).ok_or_else(|| wrong(key, "a size such as 64GiB or 512MiB", text))
            }
        };
        let bandwidth = match self.bandwidth {
            None => None,
            Some(text) => {
                let expected = "a rate such as 100M (bits) or 12.5MB (bytes)";
                Some(text.parse().map_err(|_| wrong("limits.bandwidth", expected, text))?)
            }
        };
        let link_timeout = Duration::from_secs(self.link_timeout.unwrap_or(90).max(1));
        if link_timeout > Duration::from_millis(MAX_LINK_TIMEOUT_MS) {
            let found = link_timeout.as_secs().to_string();
            return Err(wrong("limits.link_timeout", "at most 86400 seconds, a day", found));
        }
        let keep_copy = Duration::from_secs(self.keep_copy.unwrap_or(3600).max(1));
        if keep_copy > Duration::from_millis(MAX_KEEP_MS) {
            let found = keep_copy.as_secs().to_string();
            return Err(wrong("limits.keep_copy", "at most 604800 seconds, a week", found));
        }
        Ok(Limits {
            bandwidth,
            jobs: self.jobs.unwrap_or(4).max(1),
            largest_vm: size("limits.largest_vm", self.largest_vm, 1 << 42)?,
            memory_budget: size("limits.memory_budget", self.memory_budget, 64 << 20)?,
            link_timeout,
            keep_copy,
        })
    }
}

/// The address that `host:port` means; the port may be left out.
#[must_use]
pub(crate) fn resolve(address: &str) -> Option<SocketAddr> {
    let with_port = address.to_socket_addrs().ok().and_then(|mut found| found.next());
    with_port.or_else(|| (address, DEFAULT_PORT).to_socket_addrs().ok()?.next())
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let folder = path.with_file_name("conf.d");
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ConfigError::Read { path: folder, error }),
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    Ok(files)
}

/// Bytes, from `512MiB`, `64GiB`, `1TiB` or a plain number.
fn parse_size(text: &str) -> Option<ByteCount> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
    let (number, shift) = unit.unwrap_or((text, &0));
    let number: u64 = number.trim().parse().ok()?;
    number.checked_mul(1 << shift).map(ByteCount)
}

/// The line, from 1, of a key with too many parts: the one error of `toml` that does not tell its place. A text that is cut before that
/// line does not have it.
fn line_of_deep_key(text: &str) -> usize {
    let ends: Vec<usize> =
        text.match_indices('\n').map(|(end, _)| end).chain([text.len()]).collect();
    let is_before = |end: &usize| match toml::from_str::<Written>(&text[..*end]) {
        Ok(_) => true,
        Err(error) => error.span().is_some(),
    };
    ends.partition_point(is_before) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let path = Path::new("/etc/sterna/sterna.toml");
        Config::from_texts((path, text), &[], &resolve)
    }

    #[test]
    fn the_contract_s_example_is_read() {
        let config = load(
            r#"
            [host]
            name = "alpha"
            listen = "10.77.0.1:7837"
            control = "/run/sterna/sterna.sock"
            state_dir = "/var/lib/sterna"
            [tls]
            ca = "pki/alpha/ca-cert.pem"
            cert = "pki/alpha/server-cert.pem"
            key = "pki/alpha/server-key.pem"
            [peers.beta]
            address = "10.77.0.2:7837"
            accept = true
            [paths]
            "/srv/vm/disks" = "/data/disks"
            [accept]
            roots = ["/data", "/usr/share", "/boot"]
            options = []
            shared = ["/data/san"]
            [limits]
            bandwidth = "1G"
            "#,
        )
        .unwrap();
        assert_eq!(config.tls.ca, Path::new("/etc/sterna/pki/alpha/ca-cert.pem"));
        let crl = CrlFile::IfThere("/etc/sterna/pki/alpha/ca-crl.pem".into());
        assert_eq!(config.tls.crl, crl);
        assert!(config.peers.values().all(|peer| peer.accept));
        assert_eq!(config.accept.shared, [Path::new("/data/san")]);
        assert_eq!(config.limits.bandwidth.unwrap().bytes_per_second, 125_000_000);
        assert_eq!(config.limits.link_timeout, Duration::from_secs(90));
        assert_eq!(config.limits.keep_copy, Duration::from_secs(3600));
        assert_eq!(config.lab, Lab::default(), "nothing is left out");
    }

    #[test]
    fn a_measurement_may_leave_something_out() {
        let config = load("[host]\nname = \"a\"\n[lab]\nwithout_prediction = true").unwrap();
        assert_eq!(config.lab, Lab { without_prediction: true, ..Lab::default() });
        assert!(load("[host]\nname = \"a\"\n[lab]\nwithout_care = true").is_err());
    }

    #[test]
    fn a_list_of_revoked_certificates_that_is_named_has_to_be_there() {
        let config = load("[host]\nname = \"a\"\n[tls]\ncrl = \"lists/crl.pem\"").unwrap();
        assert_eq!(config.tls.crl, CrlFile::Required("/etc/sterna/lists/crl.pem".into()));
    }

    #[test]
    fn unknown_keys_are_errors_with_line_and_column() {
        let error = load("[host]\nname = \"a\"\ncolour = 1\n").unwrap_err().to_string();
        assert!(error.contains("line 3, column 1") && error.contains("colour"), "{error}");
    }

    #[test]
    fn a_key_of_too_many_parts_is_told_with_its_line() {
        let deep = vec!["a"; 200].join(".");
        for text in [
            format!("[host]\nname = \"a\"\n{deep} = 1\n[limits]\njobs = 1\n"),
            format!("x = \"\"\"\n\n[{deep}]\"\"\"\n[{deep}]"),
        ] {
            let line = 1 + text
                .match_indices('\n')
                .filter(|(at, _)| *at < text.rfind(&deep).unwrap())
                .count();
            let error = load(&text).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line}:")) && error.contains("parts"), "{error}");
        }
    }

    #[test]
    fn wrong_values_name_their_key() {
        for (text, part) in [
            ("[host]\nlisten = \"1.2.3.4:5\"", "host.name"),
            ("[host]\nname = \"a\"\nlisten = \"nowhere at all\"", "host.listen"),
            ("[host]\nname = \"a\"\n[limits]\nbandwidth = \"fast\"", "limits.bandwidth"),
            ("[host]\nname = \"a\"\n[limits]\nlargest_vm = \"-1\"", "limits.largest_vm"),
            ("[host]\nname = \"../a\"", "line 2"),
            // A peer would take no job with it.
            ("[host]\nname = \"a\"\n[limits]\nlink_timeout = 86401", "limits.link_timeout"),
            ("[host]\nname = \"a\"\n[limits]\nkeep_copy = 604801", "limits.keep_copy"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("64GiB"), Some(ByteCount(64 << 30)));
        assert_eq!(parse_size("17"), Some(ByteCount(17)));
        assert_eq!(parse_size("99999999999TiB"), None);
    }
}
