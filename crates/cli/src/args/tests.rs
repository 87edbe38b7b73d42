//! The command line is a contract: every form of it is read, and what is wrong ends with exit code 2.

use sterna_api::{Compress, MigrateRequest, Request, Strategy};

use super::*;
use crate::task::{Errand, Invocation, Task};

fn read(line: &str) -> Result<Cli, clap::Error> {
    Cli::read(line.split_whitespace())
}

fn task(line: &str) -> Task {
    let line = format!("{line} --agent /run/x.sock");
    Invocation::from_typed(read(&line).unwrap()).unwrap().task
}

fn request(line: &str) -> Request {
    let Task::Ask { socket, request } = task(line) else { panic!("{line} asks nothing") };
    assert_eq!(socket, PathBuf::from("/run/x.sock"));
    request
}

fn migrate(line: &str) -> MigrateRequest {
    let Task::Job { errand: Errand::Migrate(request), .. } = task(line) else {
        panic!("{line} moves nothing")
    };
    request
}

#[test]
fn the_definition_is_consistent() {
    command().debug_assert();
}

#[test]
fn every_word_is_read() {
    for line in [
        "sterna agent",
        "sterna agent --config /etc/sterna/sterna.toml",
        "sterna pki init pki",
        "sterna pki issue pki alpha",
        "sterna pki revoke pki alpha",
        "sterna pki revoke pki",
        "sterna check beta",
        "sterna check beta=10.77.0.2:7837 -o json",
        "sterna vm start web -- qemu-system-x86_64 -m 1G -name web --no-reboot",
        "sterna vm adopt web --qmp /run/web.qmp",
        "sterna vm adopt web --qmp web.qmp --pid 4711",
        "sterna vm list",
        "sterna -o jsonl vm list",
        "sterna vm show web -o json",
        "sterna vm stop web",
        "sterna vm stop web --grace 0",
        "sterna plan web beta",
        "sterna plan web beta --with-disks",
        "sterna migrate web beta",
        "sterna follow web beta",
        "sterna follow web beta=10.77.0.2:7837 --bandwidth 50M --max-downtime 100",
        "sterna status web -o json",
        "sterna switch web",
        "sterna switch web beta",
        "sterna unfollow web",
        "sterna migrate web beta --detach",
        "sterna migrate web beta --dry-run",
        "sterna migrate --all beta",
        "sterna migrate --all beta=10.77.0.2:7837 --parallel 16 --max-downtime 100",
        "sterna jobs",
        "sterna watch j1",
        "sterna cancel j1",
        "sterna report j1",
        "sterna resolve j1",
        "sterna resolve j1 --guest-is lost",
        "sterna stream inspect capture.bin",
        "sterna stream inspect -",
        "sterna man out",
        "sterna completions bash",
    ] {
        assert!(read(line).is_ok(), "{line}: {}", read(line).unwrap_err());
    }
}

#[test]
fn what_is_wrong_is_wrong_usage() {
    for line in [
        "sterna",
        "sterna move web beta",
        "sterna vm",
        "sterna vm start web",
        "sterna vm start web --",
        "sterna vm start web qemu-system-x86_64",
        "sterna vm start ../web -- qemu-system-x86_64",
        "sterna vm adopt web",
        "sterna vm adopt web --qmp s --pid 0",
        "sterna vm stop web --grace -1",
        "sterna vm list -o xml",
        "sterna pki issue pki al/pha",
        "sterna pki revoke",
        "sterna migrate web",
        "sterna migrate",
        "sterna migrate --all",
        "sterna migrate web beta --all beta",
        "sterna migrate web --all beta",
        "sterna migrate web beta --parallel 2",
        "sterna migrate --all beta --parallel 0",
        "sterna migrate --all beta --detach",
        "sterna migrate --all beta --dry-run",
        "sterna migrate web beta=host",
        "sterna migrate web beta --strategy fastest",
        "sterna migrate web beta --bandwidth 0",
        "sterna migrate web beta --bandwidth 10Mbit",
        "sterna migrate web beta --connections 0",
        "sterna migrate web beta --connections 65",
        "sterna migrate web beta --compress 20",
        "sterna migrate web beta --compress 0",
        "sterna migrate web beta --compress best",
        "sterna migrate web beta --max-downtime 0",
        "sterna migrate web beta --timeout -1",
        "sterna migrate web beta --verify some",
        "sterna migrate web beta --detach --dry-run",
        "sterna watch",
        "sterna stream inspect",
        "sterna resolve",
        "sterna resolve j1 --guest-is paused",
    ] {
        assert_eq!(read(line).err().map(|error| error.exit_code()), Some(2), "{line}");
    }
}

#[test]
fn help_and_version_are_no_failure() {
    for line in
        ["sterna --help", "sterna --version", "sterna migrate --help", "sterna help vm start"]
    {
        assert_eq!(read(line).err().map(|error| error.exit_code()), Some(0), "{line}");
    }
}

#[test]
fn migrate_has_the_defaults_of_the_contract() {
    let request = migrate("sterna migrate web beta");
    assert_eq!((request.name.as_str(), request.destination.as_str()), ("web", "beta"));
    assert_eq!(request.options, sterna_api::MigrateOptions::default());
}

#[test]
fn migrate_passes_every_option_on() {
    let request = migrate(
        "sterna migrate web beta=10.77.0.2:7837 --strategy three-stage --with-disks --max-downtime 100 \
         --timeout 60 --bandwidth 12.5MB --connections 8 --compress 3 --verify full --detach",
    );
    assert_eq!(request.destination, "beta=10.77.0.2:7837");
    let options = request.options;
    assert_eq!(options.strategy, Strategy::ThreeStage);
    assert_eq!((options.max_downtime_ms, options.timeout_seconds), (100, 60));
    assert_eq!(options.bandwidth.map(|rate| rate.bytes_per_second), Some(12_500_000));
    assert_eq!((options.connections, options.compress), (8, Compress::Level(3)));
    assert!(options.with_disks && options.verify_full && options.detach && !options.dry_run);
}

#[test]
fn rates_are_bits_unless_they_say_bytes() {
    for (typed, bytes_per_second) in
        [("100M", 12_500_000), ("2.5G", 312_500_000), ("800k", 100_000), ("1MB", 1_000_000)]
    {
        let request = migrate(&format!("sterna migrate web beta --bandwidth {typed}"));
        assert_eq!(
            request.options.bandwidth.map(|rate| rate.bytes_per_second),
            Some(bytes_per_second)
        );
    }
}

#[test]
fn a_vm_is_started_where_the_user_stands() {
    let Request::VmStart { name, argv, directory } =
        request("sterna --agent /run/x.sock vm start web -- qemu-system-x86_64 -m 1G -o --agent")
    else {
        panic!("no start of a VM")
    };
    assert_eq!(name.as_str(), "web");
    assert_eq!(argv[..4], ["qemu-system-x86_64", "-m", "1G", "-o"]);
    assert_eq!(PathBuf::from(directory), std::env::current_dir().unwrap());
}

#[test]
fn a_qmp_socket_is_found_from_anywhere() {
    let Request::VmAdopt { qmp, pid, .. } =
        request("sterna vm adopt web --qmp run/web.qmp --pid 7")
    else {
        panic!("no adoption")
    };
    assert_eq!(PathBuf::from(qmp), std::env::current_dir().unwrap().join("run/web.qmp"));
    assert_eq!(pid, Some(7));
}

#[test]
fn stopping_a_vm_gives_it_ten_seconds() {
    for (line, seconds) in [("sterna vm stop web", 10), ("sterna vm stop web --grace 0", 0)] {
        let name = "web".parse().unwrap();
        assert_eq!(request(line), Request::VmStop { name, grace_seconds: seconds });
    }
}

#[test]
fn a_decision_is_in_the_reports_words() {
    for (typed, decision) in [
        ("source", Decision::Source),
        ("destination", Decision::Destination),
        ("lost", Decision::Lost),
    ] {
        let asked = request(&format!("sterna resolve j1 --guest-is {typed}"));
        let job = "j1".parse().unwrap();
        assert_eq!(asked, Request::Resolve { job, guest_is: Some(decision) });
        assert_eq!(decision.word(), typed);
    }
}

#[test]
fn a_drain_moves_two_at_a_time() {
    for (line, parallel) in [("", 2), (" --parallel 5", 5)] {
        let task = task(&format!("sterna migrate --all beta --bandwidth 1MB{line}"));
        let Task::Drain { drain, .. } = task else { panic!("{task:?}") };
        assert_eq!((drain.parallel, drain.request.destination.as_str()), (parallel, "beta"));
        let rate = drain.request.options.bandwidth.map(|rate| rate.bytes_per_second);
        assert_eq!(rate, Some(1_000_000));
    }
}

#[test]
fn following_passes_its_options_on() {
    let Request::Follow(asked) =
        request("sterna follow web beta --bandwidth 1MB --max-downtime 100")
    else {
        panic!("nothing is followed")
    };
    assert_eq!((asked.name.as_str(), asked.destination.as_str()), ("web", "beta"));
    assert_eq!(asked.options.bandwidth.map(|rate| rate.bytes_per_second), Some(1_000_000));
    assert_eq!((asked.options.max_downtime_ms, asked.options.detach), (100, false));
    let Request::Follow(plain) = request("sterna follow web beta") else { panic!("as above") };
    assert_eq!(plain.options, sterna_api::MigrateOptions::default());
}

#[test]
fn a_copy_is_kept_where_that_is_asked_for() {
    for (line, expected) in [("sterna unfollow web", false), ("sterna unfollow web --keep", true)] {
        let Request::Unfollow { name, keep } = request(line) else { panic!("{line} ends nothing") };
        assert_eq!((name.as_str(), keep), ("web", expected));
    }
}

#[test]
fn a_switch_may_name_its_destination() {
    for (line, expected) in [("sterna switch web", None), ("sterna switch web beta", Some("beta"))]
    {
        let Task::Job { errand: Errand::Switch { name, destination }, .. } = task(line) else {
            panic!("{line} hands nothing over")
        };
        assert_eq!((name.as_str(), destination.as_deref()), ("web", expected));
    }
}
