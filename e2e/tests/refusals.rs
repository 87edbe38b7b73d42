//! What is refused before anything is touched: by exit code, in words, with the guest as it was.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sterna_e2e::{
    Authority, Error, Guest, HostSetup, Pair, Peer, Result, Setup, Side, Vm, can_run_here,
    expect_that, kernel_and_initrd, make_disk, qemu10, story,
};

const LOAD: &str = "idle size=8M sweep=30";

#[test]
fn a_peer_that_nobody_knows() -> Result<()> {
    story(&Setup::default(), |pair| {
        let vm = Vm::start(pair, &Guest::new("stays").load(LOAD))?;
        let output = pair.host(Side::Alpha).run(&["migrate", vm.name(), "nowhere"])?;
        expect_that(output.code == Some(3), "the exit code", 3, output.words())?;
        expect_that(output.words().contains("nowhere"), "the message", "the name", output.words())?;
        vm.check_still_here(pair)
    })
}

#[test]
fn a_peer_that_takes_nothing_from_us() -> Result<()> {
    let beta = HostSetup { peer: Peer::NotAccepted, ..HostSetup::default() };
    story(&Setup { beta, ..Setup::default() }, |pair| {
        let vm = Vm::start(pair, &Guest::new("stays").load(LOAD))?;
        let moved = vm.try_migrate(pair, &[])?;
        moved.check(3, "refused", "source")?;
        let check = pair.host(Side::Alpha).run(&["check", "beta", "-o", "json"])?.json()?;
        expect_that(check["accepts"] == false, "sterna check", "accepts: false", &check)?;
        vm.check_still_here(pair)
    })
}

#[test]
fn a_peer_of_another_authority() -> Result<()> {
    let beta = HostSetup { authority: Authority::Foreign, ..HostSetup::default() };
    story(&Setup { beta, ..Setup::default() }, |pair| {
        let vm = Vm::start(pair, &Guest::new("stays").load(LOAD))?;
        for words in [vec!["check", "beta"], vec!["migrate", vm.name(), "beta"]] {
            let output = pair.host(Side::Alpha).run(&words)?;
            let refused = matches!(output.code, Some(1 | 3));
            expect_that(refused, "the exit code", "1 or 3", output.words())?;
            let says = output.words().contains("certificate");
            expect_that(says, "the message", "the certificate", output.words())?;
        }
        vm.check_still_here(pair)
    })
}

/// Revoked while the agents run: the list counts from the next connection, in both directions.
#[test]
fn a_peer_whose_certificate_is_revoked() -> Result<()> {
    story(&Setup::default(), |pair| {
        let vm = Vm::start(pair, &Guest::new("stays").load(LOAD))?;
        pair.host(Side::Alpha).run(&["check", "beta"])?.success()?;
        let pki = pair.world().folder().join("pki");
        let folder = pki.to_string_lossy().into_owned();
        pair.host(Side::Alpha).run(&["pki", "revoke", &folder, "alpha"])?.success()?;
        let copied = std::fs::copy(pki.join("ca-crl.pem"), pki.join("beta/ca-crl.pem"));
        copied.map_err(Error::io("copying the list of revoked certificates"))?;
        for (side, peer, found) in [
            (Side::Alpha, "beta", "it lists it as revoked"),
            (Side::Beta, "alpha", "found it in our list of revoked ones"),
        ] {
            let output = pair.host(side).run(&["check", peer])?;
            expect_that(output.code == Some(3), "the exit code", 3, output.words())?;
            expect_that(output.words().contains(found), "the message", found, output.words())?;
        }
        let moved = vm.try_migrate(pair, &[])?;
        moved.check(3, "refused", "source")?;
        let words = moved.report.to_string();
        expect_that(
            words.contains("certificate-revoked"),
            "the code",
            "certificate-revoked",
            &words,
        )?;
        vm.check_still_here(pair)
    })
}

#[test]
fn a_kernel_that_the_destination_lacks() -> Result<()> {
    story(&lacking_a_kernel()?, |pair| {
        let vm = Vm::start(pair, &Guest::new("stays").load(LOAD))?;
        let before = pair.world().counters(Side::Alpha)?.sent_bytes;
        let moved = vm.try_migrate(pair, &[])?;
        moved.check(3, "refused", "source")?;
        let words = moved.report.to_string();
        expect_that(words.contains("no-such-kernel"), "the reason", "the file's name", &words)?;
        let sent_bytes = pair.world().counters(Side::Alpha)?.sent_bytes - before;
        expect_that(sent_bytes < 100_000, "bytes sent", "a few messages", sent_bytes)?;
        vm.check_still_here(pair)
    })
}

/// What a move would be refused for, the plan says before.
#[test]
fn a_plan_tells_the_refusals() -> Result<()> {
    story(&lacking_a_kernel()?, |pair| {
        let vm = Vm::start(pair, &Guest::new("stays").load(LOAD))?;
        let plan =
            pair.host(Side::Alpha).run(&["plan", vm.name(), "beta", "-o", "json"])?.json()?;
        let text = plan["refusals"].to_string();
        expect_that(text.contains("no-such-kernel"), "sterna plan", "the refusal", &plan)
    })
}

/// Both sides' reasons come together, from the plan as from the move.
#[test]
fn what_was_plugged_in_a_disk_that_is_a_copy_and_a_small_destination() -> Result<()> {
    let limits = vec!["largest_vm = \"128MiB\"".to_owned()];
    let beta = HostSetup { limits, ..HostSetup::default() };
    story(&Setup { beta, ..Setup::default() }, |pair| {
        let (image, copy) =
            (pair.shared_folder().join("disk.img"), pair.shared_folder().join("copy.img"));
        make_disk(&image, 16 << 20)?;
        let guest = Guest::new("grown").load(LOAD).disk(&image);
        let vm = Vm::start(pair, &guest)?;
        let mut qmp = vm.qmp(pair)?;
        qmp.command_with("device_add", &json!({"driver": "virtio-rng-pci", "id": "hot0"}))?;
        drop(qmp);
        // The same image to the byte, but another file.
        fs::copy(&image, &copy).unwrap();
        map_at_beta(pair, &image, &copy)?;
        let reasons =
            refused_by_both(pair, &vm, &["disk-not-shared", "hot-plugged", "vm-too-large"])?;
        for part in ["hot0 (virtio-rng-pci)", "copy.img is not the source's", "128"] {
            expect_that(reasons.contains(part), "the reasons", part, &reasons)?;
        }
        check_untouched(pair, &vm)
    })
}

/// A source of QEMU 10 with all that does not move: the destination has 7.2.
#[test]
fn a_cpu_a_machine_and_a_device_that_the_destination_lacks() -> Result<()> {
    let newer = match can_run_here()?.then(qemu10) {
        Some(Ok(newer)) => newer,
        missing => {
            eprintln!("SKIPPED: no QEMU 10: {missing:?}");
            return Ok(());
        }
    };
    story(&Setup::default(), |pair| {
        let guest = Guest::new("newer").program(&newer).machine("pc").load(LOAD);
        let guest = guest.option("cpu", "max");
        let guest = guest.option("object", "memory-backend-ram,id=shm,size=1M,share=on");
        let vm = Vm::start(pair, &guest.option("device", "ivshmem-plain,memdev=shm,id=iv"))?;
        let expected =
            ["cpu-differs", "device-not-allowed", "machine-unknown", "qemu-blocked", "qemu-older"];
        let reasons = refused_by_both(pair, &vm, &expected)?;
        for part in ["ivshmem", "pc-i440fx-10.0", "-cpu max"] {
            expect_that(reasons.contains(part), "the reasons", part, &reasons)?;
        }
        check_untouched(pair, &vm)
    })
}

/// The processors of a guest that takes all there is are the same at both ends here.
#[test]
fn a_whole_processor_moves_to_the_same() -> Result<()> {
    story(&Setup::default(), |pair| {
        let mut vm = Vm::start(pair, &Guest::new("whole").load(LOAD).option("cpu", "max"))?;
        vm.migrate(pair, &[])?;
        vm.check_works()
    })
}

/// Tells beta's agent where a file is; it reads its configuration when it starts.
fn map_at_beta(pair: &mut Pair, from: &Path, to: &Path) -> Result<()> {
    let file = pair.host(Side::Beta).configuration_file();
    let text = fs::read_to_string(&file).map_err(Error::io("reading sterna.toml"))?;
    let text = text.replace("[paths]", &format!("[paths]\n{from:?} = {to:?}"));
    fs::write(&file, text).map_err(Error::io("writing sterna.toml"))?;
    pair.host_mut(Side::Beta).restart()
}

/// The plan's refusals have these codes, and the move's are the same; gives their reasons.
fn refused_by_both(pair: &Pair, vm: &Vm, codes: &[&str]) -> Result<String> {
    let plan = pair.host(Side::Alpha).run(&["plan", vm.name(), "beta", "-o", "json"])?;
    expect_that(plan.code == Some(3), "the plan's exit code", 3, plan.words())?;
    let refusals = plan.json()?["refusals"].clone();
    let found: BTreeSet<&str> =
        refusals.as_array().into_iter().flatten().filter_map(code).collect();
    let expected = codes.iter().copied().collect();
    expect_that(found == expected, "the plan's codes", format!("{codes:?}"), &refusals)?;
    let before = pair.world().counters(Side::Alpha)?.sent_bytes;
    let moved = vm.try_migrate(pair, &[])?;
    let sent_bytes = pair.world().counters(Side::Alpha)?.sent_bytes - before;
    moved.check(3, "refused", "source")?;
    expect_that(sent_bytes < 100_000, "bytes sent", "a few messages", sent_bytes)?;
    let report = moved.report.to_string();
    for refusal in refusals.as_array().into_iter().flatten() {
        for key in ["code", "reason"] {
            let text = refusal[key].as_str().unwrap_or_default();
            expect_that(
                report.contains(json!(text).to_string().trim_matches('"')),
                "the report",
                text,
                &report,
            )?;
        }
    }
    Ok(refusals.to_string())
}

fn code(refusal: &Value) -> Option<&str> {
    refusal["code"].as_str()
}

/// The guest runs where it was, none waits for it, and its QEMU is as nobody has touched it.
fn check_untouched(pair: &Pair, vm: &Vm) -> Result<()> {
    vm.check_still_here(pair)?;
    let started = pair.world().qemus(Side::Beta)?;
    expect_that(started.is_empty(), "QEMUs at the destination", "none", format!("{started:?}"))?;
    let mut qmp = vm.qmp(pair)?;
    let capabilities = qmp.command("query-migrate-capabilities")?;
    let on: Vec<&Value> =
        capabilities.as_array().into_iter().flatten().filter(|one| one["state"] == true).collect();
    expect_that(on.is_empty(), "capabilities that are on", "none", format!("{on:?}"))?;
    let migration = qmp.command("query-migrate")?;
    expect_that(migration.get("status").is_none(), "migrations begun", "none", &migration)?;
    let nodes = qmp.command("query-named-block-nodes")?.to_string();
    expect_that(!nodes.contains("sterna-hold"), "block nodes", "none of ours", &nodes)
}

/// The destination looks for the kernel where there is none.
fn lacking_a_kernel() -> Result<Setup> {
    let (kernel, _) = kernel_and_initrd()?;
    let paths = vec![(kernel, PathBuf::from("/usr/share/no-such-kernel"))];
    let beta = HostSetup { paths, ..HostSetup::default() };
    Ok(Setup { beta, ..Setup::default() })
}
