//! Displays: none, or VNC on a unix socket of ours.

use alloc::format;
use alloc::string::ToString;

use super::{Access, Builder};
use crate::argv::shown;
use crate::params::{Params, escape};
use crate::table::{Kind, Rule};

const SIGN_IN: Kind = Kind::Not("who may look is configured at the destination");

#[rustfmt::skip]
const VNC: &[Rule] = &[
    ("share", Kind::Word), ("lossy", Kind::Word), ("non-adaptive", Kind::Word), ("password", Kind::Word),
    ("id", Kind::Word), ("key-delay-ms", Kind::Word), ("power-control", Kind::Word), ("audiodev", Kind::Word),
    ("display", Kind::Word), ("head", Kind::Word), ("to", Kind::Word),
    ("password-secret", SIGN_IN), ("sasl", SIGN_IN), ("sasl-authz", SIGN_IN), ("tls-creds", SIGN_IN), ("tls-authz", SIGN_IN),
    ("websocket", Kind::Not("use -vnc unix:... without websocket")),
];

impl Builder<'_> {
    pub(super) fn display(&mut self, value: &str) {
        if value == "none" {
            return self.push("display", Some(value.to_string()));
        }
        if let Some(vnc) = value.strip_prefix("vnc=") {
            return self.vnc(vnc);
        }
        let kind = value.split([',', '=']).next().unwrap_or_default();
        let reason = format!("the display {} is a window on the source's host", shown(kind));
        self.refuse("display-not-allowed", reason, "use -display none or -vnc unix:PATH");
    }

    pub(super) fn vnc(&mut self, value: &str) {
        let Some(mut params) = self.parse("vnc", value, Some("vnc")) else {
            return;
        };
        let target = params.get("vnc").map(|target| target.to_string()).unwrap_or_default();
        params.remove("vnc");
        let Some(params) = self.ruled("vnc", params, VNC, Access::Read) else {
            return;
        };
        let settings = if params.pairs.is_empty() {
            params.to_text()
        } else {
            format!(",{}", params.to_text())
        };
        match target.strip_prefix("unix:") {
            _ if target == "none" => self.push("vnc", Some(format!("none{settings}"))),
            Some(path) => {
                let ours = self.our_socket(path, path);
                self.push("vnc", Some(format!("unix:{}{settings}", escape(&ours))));
            }
            None => {
                let reason =
                    format!("-vnc {} listens on the destination's network", shown(&target));
                self.refuse(
                    "display-not-allowed",
                    reason,
                    "use -vnc unix:PATH, or allow vnc with [accept] options",
                );
            }
        }
    }

    /// No window, and what would go to the terminal goes to a file and a socket. The option stays: the firmware sees it.
    pub(super) fn nographic(&mut self) {
        self.push("nographic", None);
        let options = &self.description.options;
        let has = |name: &str| options.iter().any(|option| option.name == name);
        let own_port = options.iter().filter(|option| option.name == "device").any(|option| {
            let params =
                Params::any(option.value.as_deref().unwrap_or_default(), Some("driver")).ok();
            params.is_some_and(|params| {
                params.get("driver").is_some_and(|driver| driver == "isa-serial")
            })
        });
        if has("nodefaults") {
            return;
        }
        if !has("serial") && !own_port {
            self.serial("serial", "stdio");
        }
    }
}
