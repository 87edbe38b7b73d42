//! Character devices, serial ports and monitors. Sockets and output files get a path of ours; nothing listens on a network
//! and nothing connects to what happens to be here.
//!
//! | source | destination |
//! |---|---|
//! | `file:PATH`, `stdio`, `mon:stdio` for a port | a file in the output folder |
//! | `unix:PATH,server=on`, or an inherited descriptor that listens | a socket in the VM's folder, never waited for |
//! | `stdio` for a monitor | a socket in the VM's folder |
//! | `null`, `none`, `vc`, `pty`, `ringbuf`, `chardev:ID` | the same |

use alloc::format;
use alloc::string::{String, ToString};

use super::check::{is_on, is_word};
use super::{Access, Builder, Relocated, names};
use crate::argv::shown;
use crate::params::{Params, escape};
use crate::table::{Kind, Rule};

const NETWORK: &str = "use a file or a unix socket with server=on";

#[rustfmt::skip]
const COMMON: &[Rule] = &[
    ("backend", Kind::Word), ("id", Kind::Word), ("mux", Kind::Word), ("logappend", Kind::Word),
    ("logfile", Kind::Text), ("path", Kind::Text), ("width", Kind::Word), ("height", Kind::Word), ("cols", Kind::Word),
    ("rows", Kind::Word), ("size", Kind::Word), ("append", Kind::Word), ("signal", Kind::LeftOut("there is no terminal")),
    ("server", Kind::Word), ("wait", Kind::Word), ("fd", Kind::Word), ("abstract", Kind::Only(&["off"])),
    ("tight", Kind::Word), ("reconnect*", Kind::LeftOut("a server does not connect")),
    ("telnet", Kind::Only(&["off"])), ("websocket", Kind::Only(&["off"])), ("delay", Kind::Word),
    ("input-path", Kind::Not("a port's input cannot come from a file")),
    ("tls-creds", Kind::Not("use a unix socket without TLS")), ("tls-authz", Kind::Not("use a unix socket without TLS")),
];

/// A port's other end in the short form, `file:/tmp/a.log`.
enum Short<'a> {
    Same,
    Terminal,
    File(&'a str),
    Socket(&'a str),
    Other,
}

impl Builder<'_> {
    /// `-serial`, `-parallel` and `-debugcon`.
    pub(super) fn serial(&mut self, name: &str, value: &str) {
        let port = value.strip_prefix("mon:").unwrap_or(value);
        let ours = match short(port) {
            Short::Same => port.to_string(),
            Short::Terminal => format!("file:{}", self.our_output("stdio", &format!("{name}.log"))),
            Short::File(path) => format!("file:{}", self.our_output(path, path)),
            Short::Socket(spec) => match self.listener(name, spec) {
                Some(ours) => ours,
                None => return,
            },
            Short::Other => return self.no_chardev(name, value),
        };
        self.push(name, Some(ours));
        if port.len() < value.len() {
            self.note(format!(
                "the monitor of -{name} {} is left out: the agent has its own",
                shown(value)
            ));
        }
    }

    /// `-monitor` and `-qmp`.
    pub(super) fn monitor(&mut self, name: &str, value: &str) {
        let ours = match short(value) {
            Short::Same => value.to_string(),
            Short::Terminal => {
                let path = self.our_socket("stdio", &format!("{name}.sock"));
                format!("unix:{},server=on,wait=off", escape(&path))
            }
            Short::Socket(spec) => match self.listener(name, spec) {
                Some(ours) => ours,
                None => return,
            },
            Short::File(_) | Short::Other => return self.no_chardev(name, value),
        };
        self.push(name, Some(ours));
    }

    pub(super) fn chardev(&mut self, value: &str) {
        let Some(params) = self.parse("chardev", value, Some("backend")) else {
            return;
        };
        let backend = params.get("backend").map(|backend| backend.to_string()).unwrap_or_default();
        if !matches!(
            backend.as_str(),
            "null" | "vc" | "ringbuf" | "file" | "pty" | "stdio" | "socket"
        ) {
            return self.no_chardev("chardev", &backend);
        }
        if backend == "socket" && (params.has("host") || params.has("port")) {
            return self.no_chardev("chardev", value);
        }
        let Some(mut params) = self.ruled("chardev", params, COMMON, Access::Read) else {
            return;
        };
        let id = params.get("id").map(|id| id.to_string()).unwrap_or_default();
        match backend.as_str() {
            "file" if !params.has("fd") => self.output_file(&mut params, &id),
            "stdio" if !params.has("fd") => {
                params.set("backend", "file");
                let ours = self.our_output("stdio", &format!("{id}.log"));
                params.set("path", ours);
            }
            "socket" if self.chardev_socket(&mut params, &id) => {}
            "socket" => return,
            _ if params.has("path") || params.has("fd") => {
                return self.no_chardev("chardev", value);
            }
            _ => {}
        }
        if let Some(log) = params.get("logfile").map(|log| log.to_string()) {
            let ours = self.our_output(&log, &log);
            params.set("logfile", ours);
        }
        self.push("chardev", Some(params.to_text()));
    }

    /// The file that QEMU logs to.
    pub(super) fn log_file(&mut self, value: &str) {
        if value.contains('%') {
            return self.refuse(
                "value-not-allowed",
                format!("-D {} is a pattern", shown(value)),
                "use a plain file name",
            );
        }
        let ours = self.our_output(value, value);
        self.push("D", Some(ours));
    }

    fn output_file(&mut self, params: &mut Params, id: &str) {
        let path = params.get("path").map(|path| path.to_string()).unwrap_or_default();
        let ours = self.our_output(&path, if path.is_empty() { id } else { &path });
        params.set("path", ours);
    }

    /// A listening socket, by path or by a descriptor that was inherited: both get a path of ours.
    fn chardev_socket(&mut self, params: &mut Params, id: &str) -> bool {
        let path = params.get("path").map(|path| path.to_string());
        let fd = params.get("fd").map(|fd| fd.to_string());
        let listens = params.get("server").is_some_and(|server| is_on(&server));
        let (source, wanted) = match (path, fd) {
            (Some(path), None) if listens => (path.clone(), path),
            (None, Some(fd)) if listens => (format!("fd={fd}"), format!("{id}.sock")),
            _ => {
                self.no_chardev("chardev", &params.to_text());
                return false;
            }
        };
        params.remove("fd");
        let ours = self.our_socket(&source, &wanted);
        params.set("path", ours);
        params.set("server", "on");
        params.set("wait", "off");
        true
    }

    /// `PATH,server=on,wait=off` of the short form, on a socket of ours.
    fn listener(&mut self, name: &str, spec: &str) -> Option<String> {
        const RULES: &[Rule] = &[
            ("path", Kind::Text),
            ("server", Kind::Word),
            ("wait", Kind::Word),
            ("abstract", Kind::Only(&["off"])),
            ("tight", Kind::Word),
            ("telnet", Kind::Only(&["off"])),
        ];
        let params = Params::commas(spec, Some("path"))
            .map_err(|problem| self.malformed(name, &problem.to_string()))
            .ok()?;
        let params = self.ruled(name, params, RULES, Access::Read)?;
        if !params.get("server").is_some_and(|server| is_on(&server)) {
            self.no_chardev(name, &format!("unix:{spec}"));
            return None;
        }
        let path = params.get("path").unwrap_or_default().to_string();
        let ours = self.our_socket(&path, &path);
        Some(format!("unix:{},server=on,wait=off", escape(&ours)))
    }

    pub(super) fn our_socket(&mut self, source: &str, wanted: &str) -> String {
        let dir = self.place.dir.as_str();
        let ours = format!("{dir}/{}", self.work.names.unique(wanted, names::SOCKET_BYTES));
        self.relocate(source, ours)
    }

    fn our_output(&mut self, source: &str, wanted: &str) -> String {
        let dir = self.place.output.as_str();
        let ours = format!("{dir}/{}", self.work.names.unique(wanted, names::OUTPUT_BYTES));
        self.relocate(source, ours)
    }

    fn relocate(&mut self, source: &str, path: String) -> String {
        self.work.relocated.push(Relocated { source: source.to_string(), path: path.clone() });
        path
    }

    fn no_chardev(&mut self, name: &str, value: &str) {
        let reason =
            format!("-{name} {} reaches beyond the VM's own files and sockets", shown(value));
        self.refuse("chardev-not-allowed", reason, NETWORK);
    }
}

fn short(value: &str) -> Short<'_> {
    match value.split_once(':') {
        None if matches!(value, "null" | "none" | "pty" | "vc") => Short::Same,
        None if value == "stdio" => Short::Terminal,
        Some(("vc" | "chardev", rest)) if !rest.is_empty() && is_word(rest) => Short::Same,
        Some(("file", path)) => Short::File(path),
        Some(("unix", spec)) => Short::Socket(spec),
        _ => Short::Other,
    }
}
