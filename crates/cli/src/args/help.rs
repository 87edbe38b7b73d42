//! The longer texts of the help and of the manual pages, and the groups of words in `sterna --help`.

use std::fmt::Write as _;

/// The words of `sterna --help`, by what they are for.
const GROUPS: &[(&str, &[&str])] = &[
    ("Moving VMs", &["check", "plan", "migrate"]),
    ("Following VMs", &["follow", "status", "switch", "unfollow"]),
    ("Jobs", &["jobs", "watch", "cancel", "report", "resolve"]),
    ("VMs on this host", &["vm"]),
    ("Setting up a host", &["agent", "pki"]),
    ("Looking closer", &["stream"]),
];

/// After `sterna --help`.
pub(super) const AFTER: &str = "\
EXIT CODES:
  0    done
  1    failed; the message says where the guest runs
  2    wrong usage
  3    refused by the plan; nothing was touched
  4    outcome unknown: look now
  130  interrupted, and rolled back

Results are printed on standard output, messages and progress on standard error.
`sterna WORD --help` tells a word's options.";

/// After `sterna agent --help`.
pub(super) const AGENT: &str = "\
The agent owns the VMs that run on this host and takes those that peers send.
It runs until SIGTERM or SIGINT; VMs run on without it, and it finds them again
when it starts. It logs to standard error; STERNA_LOG chooses how much (info,
debug, sterna_agent=trace).";

/// After `sterna pki --help`.
pub(super) const PKI: &str = "\
EXAMPLES:
  sterna pki init pki          on a machine that you trust; its key stays there
  sterna pki issue pki alpha   then copy pki/alpha to alpha as /etc/sterna/pki
  sterna pki revoke pki alpha  then copy pki/ca-crl.pem to every other host
  sterna pki revoke pki        renews the list before it ends";

/// After `sterna check --help`.
pub(super) const CHECK: &str = "\
EXIT CODES:
  0  the peer can be reached, is trusted and takes VMs from us
  1  it cannot be reached
  3  it is not trusted, or would refuse a VM; the reasons are printed";

/// After `sterna plan --help`.
pub(super) const PLAN: &str = "\
With -o json: strategies[] (name, and total_ms, downtime_ms, wire_bytes, each
with low and high), recommended, refusals[] (code, reason, remedy).

EXIT CODES:
  0  the move can begin
  1  the peer or the agent cannot be reached
  3  the move would be refused; the reasons are printed";

/// After `sterna watch --help`.
pub(super) const WATCH: &str = "\
Ctrl-C cancels the job and rolls it back, as with `sterna migrate`; a second one
leaves at once, and leaves the job to the agent. To stop watching without
touching the job, press Ctrl-\\ (SIGQUIT).";

/// After `sterna resolve --help`.
pub(super) const RESOLVE: &str = "\
Without --guest-is it changes nothing. It tells what the journal, the VM registry
and QEMU here say, what the other host says now, and what each decision would do.

A decision is carried out at once; nothing is asked. It is refused where the other
host says otherwise, where the guest runs here and would be ended, and for jobs
whose outcome is known. The words are the report's: source and destination are
the job's, on whichever host you say it.

EXIT CODES:
  0  told, or settled
  3  the decision is refused, or there is nothing to settle; nothing was touched
  4  the decision could not be carried out: the VM is still unknown

EXAMPLES:
  sterna resolve job-06ae9945595c345d
  sterna resolve job-06ae9945595c345d --guest-is source";

/// After `sterna vm start --help`.
pub(super) const VM_START: &str = "\
EXAMPLE:
  sterna vm start web -- qemu-system-x86_64 -machine q35,accel=kvm -m 4G \\
      -drive file=web.qcow2,if=virtio";

/// After `sterna stream inspect --help`.
pub(super) const STREAM_INSPECT: &str = "\
EXIT CODES:
  0  the stream is whole
  1  it is damaged or cut off (the damage is printed last), or cannot be read";

/// After `sterna migrate --help`.
pub(super) const MIGRATE: &str = "\
The guest runs on while its memory is copied; it stands for the last part only.
If anything fails before the hand-over, it runs on here. Ctrl-C (or SIGTERM)
rolls back; a second one leaves at once, and leaves the job to the agent.

OUTPUT:
  -o text   a summary on standard output
  -o json   exactly one report on standard output, failures included. Where no
            job came to be (refused, agent not reached) or its end was not seen,
            the report has job, vm, strategy, source, destination, started_at,
            outcome, guest_is, error and refusals; what is not known is null
  -o jsonl  one event per line, by type: started, progress, and at last report

  With --all it is one document with reports[] (each as above), destination and
  not_begun[] (vm, why); as JSON lines the last one is `drained`.

  With --dry-run the plan is printed instead, with --detach the job's id. With
  text and json, progress goes to standard error: a bar on a terminal, else
  lines with the time (UTC), at most one a second and one for each phase.

With --all nothing more is begun after an unknown outcome or an interrupt; after
failures and refusals it goes on.

EXIT CODES (with --all the worst of all: 4, 1, 130, 3, 0):
  0    the guest runs at the destination
  1    failed; the message says where the guest runs
  2    wrong usage
  3    refused by the plan; nothing was touched
  4    outcome unknown: look now (`sterna jobs`)
  130  interrupted, and rolled back

EXAMPLES:
  sterna migrate web beta
  sterna migrate web beta --bandwidth 500M --max-downtime 100
  sterna migrate web beta=10.77.0.2:7837 --compress none -o json > report.json
  sterna migrate web beta --detach && sterna jobs
  sterna migrate --all beta --parallel 3";

/// After `sterna follow --help`.
pub(super) const FOLLOW: &str = "\
Returns when the destination is prepared and copying has begun. From then on pages
that change are sent in the background, few of them and those first that are likely
to stay as they are; `sterna switch` hands the VM over within about a second. A VM
that is followed is not migrated, and QEMU refuses to plug devices meanwhile: add the
backend first (netdev_add, blockdev-add, object-add), which pauses following, or use
`sterna unfollow --keep`.

Following ends with `sterna unfollow`. Broken links and restarted agents do not end it:
it goes on by itself with what the destination has, and `sterna status` says so.

EXIT CODES:
  0  it is followed
  1  it failed; the guest runs on here
  3  refused; nothing was touched

EXAMPLE:
  sterna follow web beta --bandwidth 50M && sterna status web";

/// After `sterna status --help`.
pub(super) const STATUS: &str = "\
The predicted time of a switch is an estimate from what is stale, the link's rate
and a fixed part for the devices.

EXIT CODES:
  0  told
  3  the VM is not followed";

/// After `sterna switch --help`.
pub(super) const SWITCH: &str = "\
Waits for the end, and prints one report, as `sterna migrate` does, with switch_ms:
from this command until the guest runs at the destination. Ctrl-C rolls back, which
ends following too.

EXIT CODES:
  0    the guest runs at the destination
  1    failed; the message says where the guest runs
  3    the VM is not followed, or to another host; nothing was touched
  4    outcome unknown: look now (`sterna jobs`)
  130  interrupted, and rolled back";

/// Lists the words in groups, instead of in one list. A word that no group names would not be shown (a test looks).
pub(super) fn group_words(command: clap::Command) -> clap::Command {
    let header = *command.get_styles().get_header();
    let literal = *command.get_styles().get_literal();
    let mut words = String::new();
    for (title, names) in GROUPS {
        // Writing to a text cannot fail.
        let _ = writeln!(words, "{header}{title}:{header:#}");
        for name in *names {
            let about = command.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(words, "  {literal}{name:8}{literal:#} {about}");
        }
        words.push('\n');
    }
    let template = format!(
        "{{about}}\n\n{{usage-heading}} {{usage}}\n\n{words}{header}Options:{header:#}\n{{options}}{{after-help}}\n"
    );
    command.help_template(template)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_in_a_group() {
        let command = super::super::command();
        let visible = command.get_subcommands().filter(|word| !word.is_hide_set());
        let mut words: Vec<&str> = visible.map(clap::Command::get_name).collect();
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        words.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(words, grouped);
    }
}
