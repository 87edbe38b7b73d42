//! What a destination allows, and where it puts a VM's sockets and output.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::path::{CleanPath, Mappings};
use crate::table::{self, Treatment};

/// Longest folder for sockets: a socket's whole path has at most 107 bytes.
const MAX_SOCKET_DIR_BYTES: usize = 80;

/// Options whose treatment makes the migration work: the configuration cannot replace it.
const OURS: [&str; 4] = ["machine", "M", "m", "object:memory-backend-memfd"];

/// Why a configuration makes no policy, or a folder no place.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PolicyError {
    /// A root, a mapping or a folder is no path.
    #[error("{path:?}: {problem}")]
    Path {
        /// The text.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An extra option is none that can be allowed.
    #[error(
        "{option:?}: expected a QEMU option's name without dash, 'hostfwd', or device:NAME, object:NAME, netdev:NAME, chardev:NAME"
    )]
    Option {
        /// The text.
        option: String,
    },
}

/// What a VM that arrives may use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    pub(crate) roots: Vec<CleanPath>,
    pub(crate) mappings: Mappings,
    extra: BTreeSet<String>,
}

impl Policy {
    /// A policy from the configuration's `[accept] roots`, `[paths]` (source's path, ours) and `[accept] options`.
    ///
    /// An extra option is a name without dash (`gdb`), `device:NAME`, `object:NAME`, `netdev:NAME` or `chardev:NAME`, or
    /// `hostfwd` (user networking may listen on any address here). What it names is taken over as the source wrote it when
    /// the built-in rules refuse it: paths in it are neither mapped nor held below the roots.
    ///
    /// # Errors
    /// The first entry that is no absolute path or no option.
    pub fn new(
        roots: &[String],
        mappings: &[(String, String)],
        options: &[String],
    ) -> Result<Self, PolicyError> {
        let roots = roots.iter().map(|root| clean(root)).collect::<Result<_, _>>()?;
        let pair = |(from, to): &(String, String)| Ok((clean(from)?, clean(to)?));
        let mappings = mappings.iter().map(pair).collect::<Result<_, PolicyError>>()?;
        if let Some(wrong) = options.iter().find(|option| !can_be_allowed(option)) {
            return Err(PolicyError::Option { option: wrong.clone() });
        }
        let extra = options.iter().cloned().collect();
        Ok(Self { roots, mappings: Mappings::new(mappings), extra })
    }

    /// Whether the configuration allows `name`, or `name:kind`.
    pub(crate) fn allows(&self, name: &str, kind: Option<&str>) -> bool {
        let kinds = kind.map(|kind| format!("{name}:{kind}"));
        self.extra.contains(name) || kinds.is_some_and(|kinds| self.extra.contains(&kinds))
    }
}

/// Where a VM's own files go on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub(crate) dir: CleanPath,
    pub(crate) output: CleanPath,
}

impl Place {
    /// `dir` takes the sockets, `output` the files that QEMU writes (serial logs). They may be the same folder.
    ///
    /// # Errors
    /// When one is no absolute path, or `dir` is too long for a socket in it.
    pub fn new(dir: &str, output: &str) -> Result<Self, PolicyError> {
        let place = Self { dir: clean(dir)?, output: clean(output)? };
        if place.dir.as_str().len() > MAX_SOCKET_DIR_BYTES {
            let problem =
                format!("expected at most {MAX_SOCKET_DIR_BYTES} bytes, so that sockets fit");
            return Err(PolicyError::Path { path: dir.to_string(), problem });
        }
        Ok(place)
    }
}

fn clean(text: &str) -> Result<CleanPath, PolicyError> {
    CleanPath::parse(text).map_err(|problem| PolicyError::Path {
        path: text.to_string(),
        problem: problem.to_string(),
    })
}

fn can_be_allowed(option: &str) -> bool {
    if OURS.contains(&option) {
        return false;
    }
    if option == "hostfwd" {
        return true;
    }
    match option.split_once(':') {
        Some((name, kind)) => {
            let word =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            matches!(name, "device" | "object" | "netdev" | "chardev")
                && !kind.is_empty()
                && kind.bytes().all(word)
        }
        None => table::find(option).is_some_and(|row| !matches!(row.treatment, Treatment::RunOnly)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_options_are_known_ones() {
        let policy = |option: &str| Policy::new(&[], &[], &[option.to_string()]);
        for option in ["gdb", "vnc", "hostfwd", "device:ivshmem-plain", "netdev:user"] {
            assert!(policy(option).is_ok(), "{option}");
        }
        for option in [
            "",
            "-gdb",
            "frob",
            "incoming",
            "S",
            "pidfile",
            "machine",
            "m",
            "device:",
            "drive:x",
            "device:a b",
        ] {
            assert!(policy(option).is_err(), "{option}");
        }
    }

    #[test]
    fn paths_are_checked() {
        assert!(Policy::new(&["data".into()], &[], &[]).is_err());
        assert!(Policy::new(&[], &[("/a".into(), "/b/../c".into())], &[]).is_err());
        assert!(Place::new(&format!("/{}", "x".repeat(90)), "/var/log").is_err());
        assert!(Place::new("/run/sterna/vms/a", "/run/sterna/vms/a").is_ok());
    }
}
