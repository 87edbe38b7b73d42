//! An argument vector, split into options as QEMU splits it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use sterna_model::Refusal;

use crate::description::SourceOption;
use crate::params::Params;
use crate::table::{self, Arity};

/// Refusals in one answer, at most: more do not help a reader.
pub(crate) const MAX_REFUSALS: usize = 64;

/// The options of `args` (without the program), names without dashes. A bare argument is the first disk's image (`hda`).
///
/// # Errors
/// Every argument that is no option of QEMU's, or lacks its value.
pub(crate) fn split(args: &[String]) -> Result<Vec<SourceOption>, Vec<Refusal>> {
    let (mut options, mut refusals) = (Vec::new(), Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(name) = arg.strip_prefix('-') else {
            options.push(SourceOption { name: "hda".into(), value: Some(arg.clone()) });
            continue;
        };
        let name = name.strip_prefix('-').unwrap_or(name);
        let refusal = match table::find(name).map(|row| row.arity) {
            Some(Arity::Flag) => {
                options.push(SourceOption { name: name.to_string(), value: None });
                continue;
            }
            Some(Arity::Value) => match args.next() {
                Some(value) => {
                    options
                        .push(SourceOption { name: name.to_string(), value: Some(value.clone()) });
                    continue;
                }
                None => ("argument-malformed", format!("-{name} lacks its value")),
            },
            None => ("option-unknown", format!("{} is no QEMU option that we know", shown(arg))),
        };
        if refusals.len() < MAX_REFUSALS {
            refusals.push(Refusal::new(refusal.0, refusal.1, "start the VM without it"));
        }
    }
    if refusals.is_empty() { Ok(options) } else { Err(refusals) }
}

/// The file that the guest prints to: the first serial port whose output goes to a file, as the arguments write its path.
///
/// `argv` may start with the program. A relative path starts from QEMU's working directory.
#[must_use]
pub fn serial_path(argv: &[String]) -> Option<String> {
    let start = usize::from(argv.first().is_some_and(|first| !first.starts_with('-')));
    let options = split(argv.get(start..)?).ok()?;
    let value = |option: &SourceOption| option.value.clone().unwrap_or_default();
    let ports = options.iter().filter_map(|option| match option.name.as_str() {
        "serial" => Some(value(option)),
        "device" => {
            let params = Params::any(&value(option), Some("driver")).ok()?;
            let serial = matches!(
                params.get("driver")?.as_ref(),
                "isa-serial" | "pci-serial" | "virtconsole"
            );
            serial.then(|| params.get("chardev").map(|id| format!("chardev:{id}")))?
        }
        _ => None,
    });
    let chardevs = || options.iter().filter(|option| option.name == "chardev");
    ports
        .filter_map(|port| {
            let port = port.strip_prefix("mon:").unwrap_or(&port).to_string();
            match port.strip_prefix("chardev:") {
                Some(id) => chardevs().find_map(|option| file_of(&value(option), id)),
                None => port.strip_prefix("file:").map(ToString::to_string),
            }
        })
        .find(|path| !path.is_empty())
}

/// The path of `-chardev file,id=ID,path=PATH`, or of the log that the character device keeps.
fn file_of(chardev: &str, id: &str) -> Option<String> {
    let params = Params::any(chardev, Some("backend")).ok()?;
    if params.get("id")? != id {
        return None;
    }
    let key = if params.get("backend")? == "file" { "path" } else { "logfile" };
    params.get(key).map(|path| path.to_string())
}

/// Text from elsewhere in a message: quoted, control characters escaped, cut to a readable length.
pub(crate) fn shown(text: &str) -> String {
    const MAX_SHOWN: usize = 80;
    let cut: String = text.chars().take(MAX_SHOWN).collect();
    let more = if cut.len() < text.len() { "..." } else { "" };
    format!("{cut:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(line: &str) -> Vec<String> {
        line.split_whitespace().map(ToString::to_string).collect()
    }

    #[test]
    fn splits_as_qemu_does() {
        let options = split(&argv("--nodefaults -m 256 disk.img -append -x")).unwrap();
        let read: Vec<_> =
            options.iter().map(|option| (option.name.as_str(), option.value.as_deref())).collect();
        let expected = [
            ("nodefaults", None),
            ("m", Some("256")),
            ("hda", Some("disk.img")),
            ("append", Some("-x")),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn names_every_wrong_argument() {
        let refusals = split(&argv("-frob -m 1 - ---m -append")).unwrap_err();
        let codes: Vec<_> = refusals.iter().map(|refusal| refusal.code.as_str()).collect();
        assert_eq!(
            codes,
            ["option-unknown", "option-unknown", "option-unknown", "argument-malformed"]
        );
        assert!(refusals[0].reason.contains("-frob"));
    }

    #[test]
    fn finds_what_the_guest_prints_to() {
        for (line, path) in [
            ("qemu -serial file:/tmp/a.log", Some("/tmp/a.log")),
            ("-serial null -serial file:b", Some("b")),
            ("-serial mon:stdio", None),
            ("-chardev file,id=c,path=/x -serial chardev:c", Some("/x")),
            ("-chardev pty,id=c,logfile=/y -device isa-serial,chardev=c,id=s", Some("/y")),
            (
                r#"-chardev file,id=c,path=/x -device {"driver":"isa-serial","chardev":"c"}"#,
                Some("/x"),
            ),
            ("-chardev file,id=d,path=/x -serial chardev:c", None),
            ("", None),
        ] {
            assert_eq!(serial_path(&argv(line)).as_deref(), path, "{line}");
        }
    }
}
