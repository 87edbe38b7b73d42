//! Where things are when nobody says otherwise: the system's folders for root, the XDG ones for other users.

use std::ffi::OsString;
use std::path::PathBuf;

/// The default folders. None of them is made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// Configuration: `sterna.toml`, `conf.d`, `pki`.
    pub config: PathBuf,
    /// What is gone after a reboot: the control socket.
    pub runtime: PathBuf,
    /// What has to last: journal, VM registry, checkpoints.
    pub state: PathBuf,
}

impl Dirs {
    /// The folders of the user that this process runs as.
    #[must_use]
    pub fn of_this_user() -> Self {
        Self::of_user(rustix::process::geteuid().as_raw(), |name| std::env::var_os(name))
    }

    /// The folders of a user, given how the environment answers. Relative paths in XDG variables count as none, as
    /// their specification says.
    pub fn of_user(uid: u32, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        if uid == 0 {
            return Self {
                config: "/etc/sterna".into(),
                runtime: "/run/sterna".into(),
                state: "/var/lib/sterna".into(),
            };
        }
        let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = absolute("HOME").unwrap_or_else(|| "/".into());
        let config = absolute("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
        let state = absolute("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state"));
        let runtime =
            absolute("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{uid}").into());
        Self {
            config: config.join("sterna"),
            runtime: runtime.join("sterna"),
            state: state.join("sterna"),
        }
    }

    /// The configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.config.join("sterna.toml")
    }

    /// The folder of certificates and keys.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.config.join("pki")
    }

    /// The control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("sterna.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_the_systems_folders_whatever_the_environment_says() {
        let dirs = Dirs::of_user(0, |_| Some("/elsewhere".into()));
        assert_eq!(dirs.config_file(), PathBuf::from("/etc/sterna/sterna.toml"));
        assert_eq!(dirs.control_socket(), PathBuf::from("/run/sterna/sterna.sock"));
        assert_eq!(dirs.state, PathBuf::from("/var/lib/sterna"));
    }

    #[test]
    fn users_have_their_own() {
        let environment = |name: &str| match name {
            "HOME" => Some("/home/tern".into()),
            "XDG_STATE_HOME" => Some("/data/state".into()),
            "XDG_CONFIG_HOME" => Some("relative".into()),
            _ => None,
        };
        let dirs = Dirs::of_user(1000, environment);
        assert_eq!(dirs.pki(), PathBuf::from("/home/tern/.config/sterna/pki"));
        assert_eq!(dirs.control_socket(), PathBuf::from("/run/user/1000/sterna/sterna.sock"));
        assert_eq!(dirs.state, PathBuf::from("/data/state/sterna"));
    }
}
