//! VMs and jobs: tables, and a description of one.

use sterna_api::{JobView, VmState, VmView};

use super::table::{Align, Table};

/// All VMs, a line each.
#[must_use]
pub(crate) fn vms(vms: &[VmView]) -> String {
    if vms.is_empty() {
        return "no VMs; `sterna vm start` or `sterna vm adopt` makes one known".to_owned();
    }
    let mut table = Table::new([Align::Left, Align::Left, Align::Right, Align::Left]);
    table.row(["NAME", "STATE", "PID", "UUID"]);
    for vm in vms {
        let pid = vm.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        table.row([vm.name.to_string(), state(vm), pid, vm.uuid.clone()]);
    }
    table.lines("").join("\n")
}

/// One VM, a line for each thing that is known of it.
#[must_use]
pub(crate) fn vm(vm: &VmView) -> String {
    let unknown = || "-".to_owned();
    let command: Vec<String> = vm.argv.iter().map(|word| quoted(word)).collect();
    let mut table = Table::new([Align::Left, Align::Left]);
    table.row(["name", vm.name.as_str()]);
    table.row(["uuid", &vm.uuid]);
    table.row(["state", &state(vm)]);
    if let Some(why) = &vm.unknown_because {
        table.row(["why", why.as_str()]);
    }
    if let Some(subject) = &vm.resolve {
        table.row(["look", &format!("sterna resolve {subject}")]);
    }
    table.row(["pid", &vm.pid.map_or_else(unknown, |pid| pid.to_string())]);
    table.row(["qmp", &vm.qmp.clone().unwrap_or_else(unknown)]);
    table.row(["serial", &vm.serial.clone().unwrap_or_else(unknown)]);
    table.row(["argv", &command.join(" ")]);
    table.lines("").join("\n")
}

/// All jobs, a line each, and one more for what went wrong.
#[must_use]
pub(crate) fn jobs(jobs: &[JobView]) -> String {
    if jobs.is_empty() {
        return "no jobs".to_owned();
    }
    let mut table = Table::new([Align::Left; 6]);
    table.row(["JOB", "VM", "HERE", "PEER", "STATE", "BEGUN"]);
    for job in jobs {
        let (id, vm) = (job.job.to_string(), job.vm.to_string());
        let (role, peer, state) = (job.role.clone(), job.peer.clone(), job.state.clone());
        table.row([id, vm, role, peer, state, job.started_at.clone()]);
    }
    let mut lines = table.lines("").into_iter();
    let mut out: Vec<String> = lines.next().into_iter().collect();
    for (line, job) in lines.zip(jobs) {
        out.push(line);
        out.extend(job.error.iter().map(|error| format!("    {error}")));
    }
    out.join("\n")
}

fn state(vm: &VmView) -> String {
    let state = match vm.state {
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Incoming => "incoming",
        VmState::Following => "following",
        VmState::Migrated => "migrated",
        VmState::Stopped => "stopped",
        VmState::Unknown => "unknown",
        VmState::Lost => "lost",
    };
    match &vm.moved_to {
        Some(host) => format!("{state} to {host}"),
        None => state.to_owned(),
    }
}

/// A word as a shell would take it.
fn quoted(word: &str) -> String {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "-_=,./:+@%".contains(char);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> VmView {
        VmView {
            name: "web".parse().unwrap(),
            uuid: "0a1b2c3d-0000-4111-8222-ffffffffffff".to_owned(),
            state: VmState::Running,
            pid: Some(4711),
            qmp: Some("/run/sterna/web.qmp".to_owned()),
            serial: None,
            argv: ["qemu-system-x86_64", "-append", "it's a=b", ""].map(str::to_owned).to_vec(),
            moved_to: None,
            unknown_because: None,
            resolve: None,
        }
    }

    #[test]
    fn a_vm_is_described() {
        let expected = "\
name    web
uuid    0a1b2c3d-0000-4111-8222-ffffffffffff
state   running
pid     4711
qmp     /run/sterna/web.qmp
serial  -
argv    qemu-system-x86_64 -append 'it'\\''s a=b' ''";
        assert_eq!(vm(&running()), expected);
    }

    #[test]
    fn a_vm_that_is_unknown_says_why_and_where_to_look() {
        let unknown = VmView {
            state: VmState::Unknown,
            unknown_because: Some("the journal is lost".to_owned()),
            resolve: Some("j1".to_owned()),
            ..running()
        };
        let shown = vm(&unknown);
        assert!(
            shown.contains("\nwhy     the journal is lost\nlook    sterna resolve j1\n"),
            "{shown}"
        );
    }

    #[test]
    fn vms_are_listed() {
        let moved = VmView {
            name: "database".parse().unwrap(),
            state: VmState::Migrated,
            moved_to: Some("beta".to_owned()),
            pid: None,
            ..running()
        };
        let expected = "\
NAME      STATE              PID  UUID
web       running           4711  0a1b2c3d-0000-4111-8222-ffffffffffff
database  migrated to beta     -  0a1b2c3d-0000-4111-8222-ffffffffffff";
        assert_eq!(vms(&[running(), moved]), expected);
        assert!(vms(&[]).contains("sterna vm start"));
    }

    #[test]
    fn jobs_are_listed_with_what_went_wrong() {
        let failed = JobView {
            job: "j1".parse().unwrap(),
            vm: "web".parse().unwrap(),
            peer: "beta".to_owned(),
            role: "source".to_owned(),
            state: "failed".to_owned(),
            started_at: "2026-01-04T00:34:30Z".to_owned(),
            error: Some("the link was cut".to_owned()),
        };
        let copying = JobView { state: "copying".to_owned(), error: None, ..failed.clone() };
        let expected = "\
JOB  VM   HERE    PEER  STATE    BEGUN
j1   web  source  beta  failed   2026-01-04T00:34:30Z
    the link was cut
j1   web  source  beta  copying  2026-01-04T00:34:30Z";
        assert_eq!(jobs(&[failed, copying]), expected);
        assert_eq!(jobs(&[]), "no jobs");
    }
}
