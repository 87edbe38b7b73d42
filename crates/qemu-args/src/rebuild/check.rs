//! The checks that all options share: scalars by kind, lists by rules, paths by mapping and roots.

use alloc::format;
use alloc::string::{String, ToString};

use super::{Access, Builder, FileKind, FileNeed};
use crate::argv::shown;
use crate::params::{Params, Scalar};
use crate::path::CleanPath;
use crate::table::{Kind, Rule};

/// What became of a value.
pub(super) enum Checked {
    /// Goes into the vector so.
    Value(String),
    LeftOut,
    /// Reported already.
    Refused,
}

impl Builder<'_> {
    /// The list form of an option's value, or a refusal.
    pub(super) fn parse(
        &mut self,
        name: &str,
        value: &str,
        implied: Option<&'static str>,
    ) -> Option<Params> {
        let json =
            matches!(name, "device" | "object" | "netdev" | "blockdev" | "audiodev" | "display");
        let parsed =
            if json { Params::any(value, implied) } else { Params::commas(value, implied) };
        parsed.map_err(|problem| self.malformed(name, &problem.to_string())).ok()
    }

    /// Checks a list by its rules and takes it over.
    pub(super) fn keyed(&mut self, name: &str, params: Params, rules: &[Rule]) {
        let ours = self.ruled(name, params, rules, Access::Read);
        if let Some(params) = ours.filter(|params| !params.pairs.is_empty()) {
            self.push(name, Some(params.to_text()));
        }
    }

    /// The list with each value checked, paths made ours and what is left out gone. `None` when a pair was refused.
    pub(super) fn ruled(
        &mut self,
        name: &str,
        params: Params,
        rules: &[Rule],
        access: Access,
    ) -> Option<Params> {
        let mut ours = params;
        let mut whole = true;
        let pairs = core::mem::take(&mut ours.pairs);
        for (key, value) in pairs {
            let what = format!("-{name} {key}=");
            let Some(kind) = kind_of(rules, &key) else {
                let reason = format!("-{name}: the setting {} is on no list", shown(&key));
                self.refuse("option-not-allowed", reason, "start the VM without this setting");
                whole = false;
                continue;
            };
            let text = value.text().to_string();
            match self.scalar(&what, &text, kind, access) {
                Checked::Value(checked) if checked == text => ours.pairs.push((key, value)),
                Checked::Value(checked) => ours.pairs.push((key, Scalar::Text(checked))),
                Checked::LeftOut => {}
                Checked::Refused => whole = false,
            }
        }
        whole.then_some(ours)
    }

    /// One value by its kind. `what` names it in a refusal (`-netdev ifname=`).
    pub(super) fn scalar(
        &mut self,
        what: &str,
        value: &str,
        kind: Kind,
        access: Access,
    ) -> Checked {
        let (fits, expected) = match kind {
            Kind::Word => (is_word(value), "letters, digits and . _ : + - @ [ ]".to_string()),
            Kind::Network => {
                (value.split('/').all(is_word), "letters, digits and . _ : + - @ [ ] /".to_string())
            }
            Kind::Text => (
                !value.chars().any(char::is_control),
                "text without control characters".to_string(),
            ),
            Kind::Only(known) => (known.contains(&value), format!("one of {}", known.join(", "))),
            Kind::DataFile(_) if value.is_empty() || is_data_name(value) => (true, String::new()),
            Kind::File(file) | Kind::DataFile(file) => return self.file(what, value, file, access),
            Kind::Not(remedy) => {
                self.refuse(
                    "option-not-allowed",
                    format!("{what}{} is not taken over", shown(value)),
                    remedy,
                );
                return Checked::Refused;
            }
            Kind::LeftOut(why) => {
                self.note(format!("{what}{} is left out: {why}", shown(value)));
                return Checked::LeftOut;
            }
        };
        if fits {
            return Checked::Value(value.to_string());
        }
        let reason = format!("{what}: expected {expected}, found {}", shown(value));
        self.refuse("value-not-allowed", reason, "start the VM with another value");
        Checked::Refused
    }

    fn file(&mut self, what: &str, value: &str, kind: FileKind, access: Access) -> Checked {
        let Some(path) = self.our_path(what, value) else {
            return Checked::Refused;
        };
        self.work.inputs.push(FileNeed {
            path: path.clone(),
            source_path: value.to_string(),
            access,
            kind,
            must_exist: kind != FileKind::Disk,
            format: None,
        });
        Checked::Value(path)
    }

    /// The source's path as ours: mapped, and below a root.
    pub(super) fn our_path(&mut self, what: &str, value: &str) -> Option<String> {
        let value = value.strip_prefix("file:").unwrap_or(value);
        let before_slash = value.split('/').next().unwrap_or_default();
        if before_slash.contains(':') {
            let protocol = before_slash.split(':').next().unwrap_or_default();
            let reason = format!(
                "{what}: expected a file, found the protocol {} in {}",
                shown(protocol),
                shown(value)
            );
            self.refuse("path-not-allowed", reason, "use a file below the destination's roots");
            return None;
        }
        let base = self.description.working_dir.as_deref();
        let parsed = CleanPath::parse_from(base, value);
        let mapped = parsed.and_then(|path| self.policy.mappings.apply(&path).unwrap_or(Ok(path)));
        match mapped {
            Ok(path) if path.is_below(&self.policy.roots) => Some(path.as_str().to_string()),
            Ok(path) => {
                let reason = format!(
                    "{what}{}: {} is below no root of the destination",
                    shown(value),
                    shown(path.as_str())
                );
                self.refuse(
                    "path-not-allowed",
                    reason,
                    "map it with [paths], or add its folder to [accept] roots",
                );
                None
            }
            Err(problem) => {
                let reason = format!("{what}{}: {problem}", shown(value));
                self.refuse(
                    "path-not-allowed",
                    reason,
                    "name the file by an absolute path without '..'",
                );
                None
            }
        }
    }
}

fn kind_of(rules: &[Rule], key: &str) -> Option<Kind> {
    let fits = |rule: &str| match rule.strip_suffix('*') {
        Some(start) => key.starts_with(start),
        None => rule == key,
    };
    rules.iter().find(|(rule, _)| fits(rule)).map(|(_, kind)| *kind)
}

/// Ids, numbers, sizes, addresses, switches.
pub(super) fn is_word(value: &str) -> bool {
    let known = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'.' | b'_' | b':' | b'+' | b'-' | b'@' | b'[' | b']')
    };
    value.len() <= 256 && value.bytes().all(known)
}

/// A switch in any of QEMU's spellings of on.
pub(super) fn is_on(value: &str) -> bool {
    matches!(value, "on" | "true" | "yes" | "y")
}

/// A file name that QEMU looks up in its own data folder. It looks in its working directory first, which is the agent's
/// choice and holds nothing of the VM's.
fn is_data_name(value: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    value.len() <= 64
        && value.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && value.bytes().all(known)
}
