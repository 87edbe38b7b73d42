//! Disks: `-drive` and `-blockdev`, files in raw or qcow2 below the roots.
//!
//! A format has to be named, since probing an image whose first block a guest wrote lets the guest choose how this host
//! reads it. The backing file that a qcow2 image names inside itself is the agent's to check, before QEMU sees the image.

use alloc::format;
use alloc::string::{String, ToString};

use super::check::{Checked, is_on};
use super::{Access, Builder, FileKind};
use crate::argv::shown;
use crate::params::{Params, Scalar};
use crate::table::{Kind, Rule};

/// Drivers of block nodes.
#[rustfmt::skip]
const DRIVERS: &[&str] = &[
    "copy-on-read", "file", "host_cdrom", "host_device", "null-aio", "null-co", "qcow2", "raw", "throttle",
];

/// Formats of `-drive`.
const FORMATS: &[&str] = &["raw", "qcow2", "host_device", "null-co", "null-aio"];

/// Drivers that say where bytes are, not what they mean.
#[rustfmt::skip]
const PROTOCOLS: &[&str] =
    &["copy-on-read", "file", "host_cdrom", "host_device", "null-aio", "null-co", "throttle"];

/// What a block node may be told, at any depth; the last part of a dotted key.
#[rustfmt::skip]
const NODE_RULES: &[Rule] = &[
    ("node-name", Kind::Word), ("read-only", Kind::Word), ("auto-read-only", Kind::Word), ("force-share", Kind::Word),
    ("discard", Kind::Word), ("detect-zeroes", Kind::Word), ("cache.direct", Kind::Word),
    ("cache.no-flush", Kind::Word), ("cache.writeback", Kind::Word), ("aio", Kind::Word), ("aio-max-batch", Kind::Word),
    ("locking", Kind::Word), ("drop-cache", Kind::Word), ("offset", Kind::Word), ("size", Kind::Word),
    ("latency-ns", Kind::Word), ("read-zeroes", Kind::Word), ("throttle-group", Kind::Word), ("bottom", Kind::Word),
    ("lazy-refcounts", Kind::Word), ("pass-discard-request", Kind::Word), ("pass-discard-snapshot", Kind::Word),
    ("pass-discard-other", Kind::Word), ("discard-no-unref", Kind::Word), ("cache-size", Kind::Word),
    ("l2-cache-size", Kind::Word), ("l2-cache-entry-size", Kind::Word), ("refcount-cache-size", Kind::Word),
    ("cache-clean-interval", Kind::Word), ("preallocate-truncate", Kind::Word), ("overlap-check", Kind::Word),
    ("file", Kind::Word), ("backing", Kind::Word), ("data-file", Kind::Word),
    ("pr-manager", Kind::Not("persistent reservations belong to the source's host")),
    ("x-check-cache-dropped", Kind::Word),
];

/// What `-drive` has beyond the node.
#[rustfmt::skip]
const DRIVE_RULES: &[Rule] = &[
    ("if", Kind::Only(&["ide", "scsi", "sd", "floppy", "pflash", "virtio", "none"])),
    ("bus", Kind::Word), ("unit", Kind::Word), ("index", Kind::Word), ("media", Kind::Only(&["disk", "cdrom"])),
    ("id", Kind::Word), ("cache", Kind::Word), ("readonly", Kind::Word), ("copy-on-read", Kind::Word),
    ("rerror", Kind::Word), ("werror", Kind::Word), ("group", Kind::Word), ("stats-account-invalid", Kind::Word),
    ("stats-account-failed", Kind::Word), ("snapshot", Kind::Only(&["off"])), ("bps*", Kind::Word), ("iops*", Kind::Word),
    ("throttling.*", Kind::Word), ("serial", Kind::Text),
];

/// Parts of a dotted key that lead to a child node.
const CHILDREN: [&str; 3] = ["file", "backing", "data-file"];

impl Builder<'_> {
    pub(super) fn drive(&mut self, value: &str) {
        let Some(mut params) = self.parse("drive", value, None) else {
            return;
        };
        let format =
            params.get("format").or_else(|| params.get("driver")).map(|format| format.to_string());
        let file = ["file", "file.filename"]
            .into_iter()
            .find(|key| params.get(key).is_some_and(|file| !file.is_empty()));
        if format.is_none() && file.is_some() {
            let reason = format!("-drive {}: no format is named", shown(value));
            self.refuse("format-not-named", reason, "add format=raw or format=qcow2 at the source");
        }
        let (access, image_format) = (access(&params, ""), image_format(&params));
        let image_format = image_format.as_deref();
        let mut whole = true;
        for (key, setting) in &mut params.pairs {
            let text = setting.text().to_string();
            let checked = match key.as_str() {
                "file" if text.is_empty() => Checked::LeftOut,
                "file" => self.image("-drive file=", &text, access, image_format),
                "format" => self.block_driver("drive", &text, FORMATS),
                key => match DRIVE_RULES.iter().find(|(rule, _)| fits(rule, key)) {
                    Some((_, kind)) => self.scalar(&format!("-drive {key}="), &text, *kind, access),
                    None => self.node_setting("drive", key, &text, access, image_format),
                },
            };
            whole &= settle(setting, &text, checked);
        }
        params.pairs.retain(|(key, setting)| key != "file" || !setting.text().is_empty());
        if whole {
            self.push("drive", Some(params.to_text()));
        }
    }

    pub(super) fn blockdev(&mut self, value: &str) {
        let Some(mut params) = self.parse("blockdev", value, Some("driver")) else {
            return;
        };
        if !params.has("driver") {
            return self.malformed("blockdev", "expected a driver");
        }
        let format = image_format(&params);
        let read_only: alloc::vec::Vec<Access> =
            params.pairs.iter().map(|(key, _)| access(&params, parent(key))).collect();
        let mut whole = true;
        for ((key, setting), access) in params.pairs.iter_mut().zip(read_only) {
            let text = setting.text().to_string();
            let checked = self.node_setting("blockdev", key, &text, access, format.as_deref());
            whole &= settle(setting, &text, checked);
        }
        if whole {
            self.push("blockdev", Some(params.to_text()));
        }
    }

    /// One setting of a node or of its children (`file.filename`, `backing.file.driver`).
    fn node_setting(
        &mut self,
        name: &str,
        key: &str,
        text: &str,
        access: Access,
        format: Option<&str>,
    ) -> Checked {
        let what = format!("-{name} {key}=");
        let mut last = key;
        while let Some((_, rest)) =
            last.split_once('.').filter(|(child, _)| CHILDREN.contains(child))
        {
            last = rest;
        }
        match last {
            "driver" => self.block_driver(name, text, DRIVERS),
            "filename" => {
                let access = if key.contains("backing.") { Access::Read } else { access };
                self.image(&what, text, access, format)
            }
            // A node that another one reads can be read by a third in another format.
            "file" | "backing" | "data-file" if !text.is_empty() => {
                self.work.nodes_refer = true;
                self.scalar(&what, text, Kind::Word, access)
            }
            last => match NODE_RULES.iter().find(|(rule, _)| *rule == last) {
                Some((_, kind)) => self.scalar(&what, text, *kind, access),
                None => {
                    let reason = format!("-{name}: the setting {} is on no list", shown(key));
                    self.refuse("option-not-allowed", reason, "start the VM without this setting");
                    Checked::Refused
                }
            },
        }
    }

    fn image(&mut self, what: &str, text: &str, access: Access, format: Option<&str>) -> Checked {
        let checked = self.scalar(what, text, Kind::File(FileKind::Disk), access);
        if let (Checked::Value(_), Some(need)) = (&checked, self.work.inputs.last_mut()) {
            need.format = format.map(String::from);
        }
        checked
    }

    fn block_driver(&mut self, name: &str, driver: &str, known: &[&str]) -> Checked {
        if known.contains(&driver) {
            return Checked::Value(driver.to_string());
        }
        let reason = format!("-{name}: the block driver {} does not move yet", shown(driver));
        self.refuse("block-driver-not-allowed", reason, "use raw or qcow2 images in files");
        Checked::Refused
    }
}

/// Takes the checked text over; whether the pair stands.
fn settle(setting: &mut Scalar, text: &str, checked: Checked) -> bool {
    match checked {
        Checked::Value(ours) if ours == text => true,
        Checked::Value(ours) => {
            *setting = Scalar::Text(ours);
            true
        }
        Checked::LeftOut => true,
        Checked::Refused => false,
    }
}

fn fits(rule: &str, key: &str) -> bool {
    rule.strip_suffix('*').map_or(rule == key, |start| key.starts_with(start))
}

/// The part of a dotted key before its last dot, with that dot.
fn parent(key: &str) -> &str {
    key.rfind('.').map_or("", |at| &key[..=at])
}

/// The format in which an option has its images read. None where it names several: one file can be read in any of them.
fn image_format(params: &Params) -> Option<String> {
    let names_format = |key: &str| key == "format" || key.rsplit('.').next() == Some("driver");
    let named = params.pairs.iter().filter(|(key, _)| names_format(key));
    let mut formats =
        named.map(|(_, name)| name.text()).filter(|name| !PROTOCOLS.contains(&name.as_ref()));
    let first = formats.next()?;
    formats.all(|other| other == first).then(|| first.to_string())
}

/// How QEMU opens the image of the node at `prefix`.
fn access(params: &Params, prefix: &str) -> Access {
    let on = |key: &str| {
        let value = params.get(&format!("{prefix}{key}"));
        value.is_some_and(|value| is_on(&value))
    };
    // A child is opened as its parent is.
    let inherited = !prefix.is_empty() && access(params, "") == Access::Read;
    let disc = prefix.is_empty() && params.get("media").is_some_and(|media| media == "cdrom");
    if disc || on("read-only") || on("readonly") || inherited {
        Access::Read
    } else {
        Access::ReadWrite
    }
}
