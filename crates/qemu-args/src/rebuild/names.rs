//! Names for sockets and output files at the destination: from the source's basename, safe and used once.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;

/// The agent's own QMP socket; no option of the VM gets this name.
pub(super) const AGENT_QMP: &str = "qmp.sock";

/// Bytes of a socket's name before number and extension: with a folder of 80 bytes its path stays below 107 bytes.
pub(super) const SOCKET_BYTES: usize = 14;

/// Bytes of an output file's name before number and extension.
pub(super) const OUTPUT_BYTES: usize = 64;

/// Bytes of an extension.
const EXTENSION_BYTES: usize = 5;

/// Names given out so far.
#[derive(Clone, Default)]
pub(super) struct Names(BTreeSet<String>);

impl Names {
    /// A name like the last component of `wanted`. Taken ones get a number before their extension.
    pub(super) fn unique(&mut self, wanted: &str, stem_bytes: usize) -> String {
        let base = wanted.rsplit('/').next().unwrap_or_default();
        let safe = |char: char| {
            if char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-') { char } else { '_' }
        };
        let base: String = base.trim_start_matches(['.', '-']).chars().map(safe).collect();
        // What is too long for an extension is none. Else the name would change again at the next host, where the rest of it
        // would be.
        let split =
            base.rsplit_once('.').filter(|(_, extension)| extension.len() <= EXTENSION_BYTES);
        let (stem, extension) = split.unwrap_or((&base, ""));
        let stem = &stem[..stem.len().min(stem_bytes)];
        let stem = if extension.is_empty() { stem.trim_end_matches('.') } else { stem };
        let stem = if stem.is_empty() { "file" } else { stem };
        let mut number = 1_u32;
        loop {
            let mut name =
                if number == 1 { String::from(stem) } else { format!("{stem}-{number}") };
            if !extension.is_empty() {
                name.push('.');
                name.push_str(extension);
            }
            if name != AGENT_QMP && self.0.insert(name.clone()) {
                return name;
            }
            number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn safe_and_used_once() {
        let mut names = Names::default();
        for (wanted, name) in [
            ("/tmp/a.log", "a.log"),
            ("/var/a.log", "a-2.log"),
            ("/x/qmp.sock", "qmp-2.sock"),
            ("/x/..", "file"),
            ("/x/a b,c=d.sock", "a_b_c_d.sock"),
            ("/x/é", "_"),
            ("-x", "x"),
            ("/x/name.of-a-port", "name.of-a-port"),
            ("/x/name..", "name"),
        ] {
            assert_eq!(names.unique(wanted, OUTPUT_BYTES), name, "{wanted}");
        }
        assert_eq!(names.unique(&"x".repeat(500), SOCKET_BYTES).len(), SOCKET_BYTES);
    }

    #[test]
    fn stable_at_the_second_hop() {
        let mut first = Names::default();
        let given: [String; 3] =
            ["a/long-name-of-a-serial-port.log", "b/long-name-of-a-serial-port.log", "qmp.sock"]
                .map(|wanted| first.unique(wanted, SOCKET_BYTES));
        let mut second = Names::default();
        assert_eq!(given.clone().map(|wanted| second.unique(&wanted, SOCKET_BYTES)), given);
    }

    proptest! {
        #[test]
        fn whatever_it_was_called_it_stays(wanted in prop::collection::vec("[a-c.:/-]{0,80}", 1..4)) {
            for stem_bytes in [SOCKET_BYTES, OUTPUT_BYTES] {
                let hop = |wanted: &[String]| -> Vec<String> {
                    let mut names = Names::default();
                    wanted.iter().map(|wanted| names.unique(wanted, stem_bytes)).collect()
                };
                let given = hop(&wanted);
                prop_assert_eq!(hop(&given), given);
            }
        }
    }
}
