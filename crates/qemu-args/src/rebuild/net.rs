//! Networks: `-netdev`, `-nic`, `-net`. No script, no helper, no descriptor, no port of this host.

use alloc::format;
use alloc::string::ToString;

use super::{Access, Builder, FileKind};
use crate::argv::shown;
use crate::params::{Params, ParamsProblem};
use crate::table::{Kind, Rule};

const FD: Kind =
    Kind::Not("a descriptor does not move with a VM: use ifname=NAME,script=no,downscript=no");
const SCRIPT: Kind = Kind::Only(&["no"]);
const HELPER: Kind =
    Kind::Not("prepare the tap device and use ifname=NAME,script=no,downscript=no");
const RUNS: Kind = Kind::Not("QEMU starts no programs at the destination");

#[rustfmt::skip]
const TAP: &[Rule] = &[
    ("type", Kind::Word), ("id", Kind::Word), ("ifname", Kind::Word), ("script", SCRIPT), ("downscript", SCRIPT),
    ("sndbuf", Kind::Word), ("vnet_hdr", Kind::Word), ("vhost", Kind::Word), ("vhostforce", Kind::Word),
    ("queues", Kind::Word), ("poll-us", Kind::Word),
    ("fd", FD), ("fds", FD), ("vhostfd", FD), ("vhostfds", FD), ("br", HELPER), ("helper", HELPER),
];

#[rustfmt::skip]
const USER: &[Rule] = &[
    ("type", Kind::Word), ("id", Kind::Word), ("ipv4", Kind::Word), ("ipv6", Kind::Word), ("net", Kind::Network),
    ("host", Kind::Word), ("restrict", Kind::Word), ("hostname", Kind::Word), ("dhcpstart", Kind::Word),
    ("dns", Kind::Word), ("dnssearch*", Kind::Word), ("domainname", Kind::Word), ("ipv6-net", Kind::Network),
    ("ipv6-prefix", Kind::Word), ("ipv6-prefixlen", Kind::Word), ("ipv6-host", Kind::Word), ("ipv6-dns", Kind::Word),
    ("tftp", Kind::File(FileKind::Folder)), ("tftp-server-name", Kind::Word), ("bootfile", Kind::Word),
    ("hostfwd*", Kind::Network), ("guestfwd*", RUNS), ("smb*", RUNS),
];

const HUB: &[Rule] =
    &[("type", Kind::Word), ("id", Kind::Word), ("hubid", Kind::Word), ("netdev", Kind::Word)];

/// What `-nic` and `-net nic` say about the card.
#[rustfmt::skip]
const CARD: &[Rule] = &[
    ("model", Kind::Word), ("mac", Kind::Word), ("macaddr", Kind::Word), ("addr", Kind::Word), ("name", Kind::Word),
    ("vectors", Kind::Word), ("netdev", Kind::Word), ("id", Kind::Word), ("type", Kind::Word),
];

/// Models of `-nic` that are no device names.
const MODELS: [&str; 3] = ["virtio", "virtio-net", "ne2k"];

impl Builder<'_> {
    pub(super) fn netdev(&mut self, value: &str) {
        if let Some(params) = self.parse_net("netdev", value) {
            self.backend("netdev", params, Card::Apart);
        }
    }

    pub(super) fn nic(&mut self, value: &str) {
        if let Some(params) = self.parse_net("nic", value) {
            self.backend("nic", params, Card::Along);
        }
    }

    pub(super) fn net(&mut self, value: &str) {
        let Some(params) = self.parse_net("net", value) else {
            return;
        };
        if params.get("type").is_some_and(|kind| kind == "nic") {
            if self.model(&params) {
                self.keyed("net", params, CARD);
            }
            return;
        }
        self.backend("net", params, Card::Apart);
    }

    /// Keys of `hostfwd` and the like may be given many times, so a list keeps its doubles.
    fn parse_net(&mut self, name: &str, value: &str) -> Option<Params> {
        let params = match name {
            "netdev" => Params::any(value, Some("type")),
            _ => Params::commas(value, Some("type")),
        };
        params.map_err(|problem: ParamsProblem| self.malformed(name, &problem.to_string())).ok()
    }

    fn backend(&mut self, name: &str, params: Params, card: Card) {
        let kind = params.get("type").map(|kind| kind.to_string()).unwrap_or_default();
        let rules = match kind.as_str() {
            "tap" if self.tap_is_plain(name, &params) => TAP,
            "tap" => return,
            "user" => USER,
            "hubport" => HUB,
            "none" if name != "netdev" => HUB,
            other => {
                let reason = format!("-{name}: the network {} does not move", shown(other));
                return self.refuse(
                    "netdev-not-allowed",
                    reason,
                    "use tap with ifname=NAME,script=no,downscript=no, or user",
                );
            }
        };
        if !self.forwards_are_local(name, &params) || card == Card::Along && !self.model(&params) {
            return;
        }
        let rules = if card == Card::Along { [CARD, rules].concat() } else { rules.to_vec() };
        if let Some(params) = self.ruled(name, params, &rules, Access::Read) {
            self.push(name, Some(params.to_text()));
        }
    }

    /// A tap device that is there already: named, and no script run by default.
    fn tap_is_plain(&mut self, name: &str, params: &Params) -> bool {
        const REMEDY: &str = "prepare the tap device and use ifname=NAME,script=no,downscript=no";
        if params.has("fd") || params.has("fds") {
            // The rules say so key by key.
            return true;
        }
        let before = self.work.refusals.len();
        for key in ["script", "downscript"] {
            if !params.has(key) {
                self.refuse(
                    "netdev-not-allowed",
                    format!("-{name} tap: {key}=no is missing, so QEMU would run one"),
                    REMEDY,
                );
            }
        }
        let ifname = params.get("ifname").unwrap_or_default().to_string();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if ifname.is_empty() || ifname.len() > 15 || !ifname.bytes().all(fits) {
            let reason = format!(
                "-{name} tap: expected ifname=NAME of at most 15 letters, found {}",
                shown(&ifname)
            );
            self.refuse("netdev-not-allowed", reason, REMEDY);
        }
        self.work.refusals.len() == before
    }

    /// Forwarded ports listen on the loopback only, unless the configuration allows all.
    fn forwards_are_local(&mut self, name: &str, params: &Params) -> bool {
        let before = self.work.refusals.len();
        if self.policy.allows("hostfwd", None) {
            return true;
        }
        for (key, value) in &params.pairs {
            let rule = value.text().to_string();
            if key.starts_with("hostfwd") && !is_loopback(&rule) {
                let reason = format!(
                    "-{name} hostfwd={} listens on the destination's network",
                    shown(&rule)
                );
                let remedy = "listen on 127.0.0.1, or allow hostfwd with [accept] options";
                self.refuse("netdev-not-allowed", reason, remedy);
            }
        }
        self.work.refusals.len() == before
    }

    fn model(&mut self, params: &Params) -> bool {
        match params.get("model") {
            Some(model) if !MODELS.contains(&model.as_ref()) => {
                let model = model.to_string();
                self.driver(&model)
            }
            _ => true,
        }
    }
}

/// Whether an option describes the card along with the network.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Card {
    Along,
    Apart,
}

/// `tcp:127.0.0.1:2222-:22`.
fn is_loopback(rule: &str) -> bool {
    let rule = rule.strip_prefix("tcp:").or_else(|| rule.strip_prefix("udp:")).unwrap_or(rule);
    let host = rule.split(':').next().unwrap_or_default();
    let octets = host.split('.');
    host.starts_with("127.")
        && octets.clone().count() == 4
        && octets.clone().all(|octet| octet.parse::<u8>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_an_address_not_a_name() {
        for (rule, local) in [
            ("tcp:127.0.0.1:2222-:22", true),
            ("udp:127.1.2.3:53-:53", true),
            ("tcp::2222-:22", false),
            ("tcp:0.0.0.0:1-:1", false),
            ("tcp:127.evil.example:1-:1", false),
            ("tcp:127.0.0.1.example:1-:1", false),
            ("unix:/x-:22", false),
        ] {
            assert_eq!(is_loopback(rule), local, "{rule}");
        }
    }
}
