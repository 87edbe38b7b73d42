//! `-object`: memory, I/O threads, limits, randomness.

use alloc::format;
use alloc::string::ToString;

use super::{Builder, memory};
use crate::argv::shown;
use crate::params::Params;
use crate::table::{Kind, Rule};

const RANDOM: &[Rule] = &[
    ("qom-type", Kind::Word),
    ("id", Kind::Word),
    ("filename", Kind::Only(&["/dev/urandom", "/dev/random", "/dev/hwrng"])),
];

#[rustfmt::skip]
const THREAD: &[Rule] = &[
    ("qom-type", Kind::Word), ("id", Kind::Word), ("poll-max-ns", Kind::Word), ("poll-grow", Kind::Word),
    ("poll-shrink", Kind::Word), ("aio-max-batch", Kind::Word), ("thread-pool-min", Kind::Word),
    ("thread-pool-max", Kind::Word),
];

const LIMITS: &[Rule] =
    &[("qom-type", Kind::Word), ("id", Kind::Word), ("x-*", Kind::Word), ("limits.*", Kind::Word)];

/// Objects that people do use, and why each stays behind. By prefix.
const REFUSED: &[(&str, &str, &str)] = &[
    ("secret", "a secret does not travel", "configure it at the destination"),
    ("tls-", "a secret does not travel", "configure it at the destination"),
    ("authz-", "it belongs to the source's users", "start the VM without it"),
    ("filter-", "it copies or changes the guest's packets", "start the VM without it"),
    ("colo-", "it copies the guest's packets", "start the VM without it"),
    ("can-", "the host's bus does not move", "start the VM without it"),
    ("memory-backend-epc", "an enclave's memory cannot be read", "start the VM without it"),
    ("sev-", "an encrypted guest cannot be moved by reading its memory", "start the VM without it"),
    ("tdx-", "an encrypted guest cannot be moved by reading its memory", "start the VM without it"),
    ("input-", "a host's device cannot leave it", "start the VM without it"),
    ("rng-egd", "its source of randomness is on the host", "use rng-random"),
];

impl Builder<'_> {
    pub(super) fn object(&mut self, value: &str) {
        let Some(params) = self.parse("object", value, Some("qom-type")) else {
            return;
        };
        let qom_type = params.get("qom-type").map(|name| name.to_string()).unwrap_or_default();
        match qom_type.as_str() {
            "rng-random" | "rng-builtin" => self.keyed("object", params, RANDOM),
            "iothread" | "main-loop" => self.keyed("object", params, THREAD),
            "throttle-group" => self.keyed("object", params, LIMITS),
            "thread-context" => self.note(
                "-object thread-context is left out: memory is filled by the migration".into(),
            ),
            "secret" if !self.is_mentioned_elsewhere(&params) => {
                self.note("-object secret is left out: nothing uses it".into());
            }
            name if memory::is_backend(name) => self.memory_backend(params, &qom_type),
            name => {
                let family = REFUSED.iter().find(|(prefix, ..)| name.starts_with(prefix));
                let (why, remedy) = family.map_or(
                    (
                        "it is on no list",
                        "start the VM without it, or allow it with [accept] options",
                    ),
                    |(_, why, remedy)| (*why, *remedy),
                );
                self.refuse(
                    "object-not-allowed",
                    format!("object {} is not taken over: {why}", shown(name)),
                    remedy,
                );
            }
        }
    }

    /// Whether another option mentions this object's id. libvirt gives every VM a secret that most do not use.
    fn is_mentioned_elsewhere(&self, params: &Params) -> bool {
        let Some(id) = params.get("id").filter(|id| !id.is_empty()) else {
            return true;
        };
        let values = self.description.options.iter().filter_map(|option| option.value.as_deref());
        values.filter(|value| value.contains(id.as_ref())).count() > 1
    }
}
