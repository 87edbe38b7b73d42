//! Where a VM is to go: a peer's name from the configuration, or `name=host:port`.

use std::fmt;
use std::str::FromStr;

use sterna_model::{HostName, NameError};

/// A peer's name from the configuration, or `name=host:port`. Checked here, resolved by the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination(String);

/// Why a text is no destination.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DestinationError {
    /// The part that has to be a host's name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// What follows the equals sign is no address.
    #[error("expected name=host:port (an IPv6 address in brackets), found {0:?} as host:port")]
    Address(String),
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let (name, address) = match text.split_once('=') {
            Some((name, address)) => (name, Some(address)),
            None => (text, None),
        };
        name.parse::<HostName>()?;
        match address {
            Some(address) if !is_address(address) => {
                Err(DestinationError::Address(address.chars().take(80).collect()))
            }
            _ => Ok(Self(text.into())),
        }
    }
}

fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_port = port.parse::<u16>().is_ok_and(|port| port > 0)
        && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
    let is_bare = !host.is_empty() && !host.contains(['[', ']', ':', ' ', '/']);
    is_port && (is_bracketed || is_bare)
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.0
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_name_or_a_name_with_an_address() {
        for right in ["beta", "beta=10.77.0.2:7837", "beta=host.example:1", "b=[fe80::1]:7837"] {
            assert!(right.parse::<Destination>().is_ok(), "{right}");
        }
        for wrong in [
            "",
            "be ta",
            "=10.0.0.1:1",
            "beta=",
            "beta=host",
            "beta=host:0",
            "beta=host:65536",
            "beta=host:+1",
            "beta=:1",
            "beta=fe80::1:1",
            "beta=[]:1",
        ] {
            assert!(wrong.parse::<Destination>().is_err(), "{wrong}");
        }
    }
}
