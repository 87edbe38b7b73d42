//! What is refused before anything is touched: by exit code, in words, with the guest as it was.

use std::path::PathBuf;

use sterna_e2e::{
    Authority, Error, Guest, HostSetup, Peer, Result, Setup, Side, Vm, expect_that,
    kernel_and_initrd, story,
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

/// The destination looks for the kernel where there is none.
fn lacking_a_kernel() -> Result<Setup> {
    let (kernel, _) = kernel_and_initrd()?;
    let paths = vec![(kernel, PathBuf::from("/usr/share/no-such-kernel"))];
    let beta = HostSetup { paths, ..HostSetup::default() };
    Ok(Setup { beta, ..Setup::default() })
}
