//! A host is drained: three guests leave it with one command, two at a time, and work where they went.

use sterna_e2e::{Guest, HostSetup, MOVE_LIMIT, Result, Setup, Side, Vm, expect_that, story};

#[test]
fn a_host_with_three_guests_is_drained() -> Result<()> {
    // The destination takes one at a time: the other one waits, and is not refused.
    let limited = HostSetup { limits: vec!["jobs = 1".to_owned()], ..HostSetup::default() };
    story(&Setup { beta: limited, ..Setup::default() }, |pair| {
        let mut vms = Vec::new();
        for name in ["one", "two", "three"] {
            let guest = Guest::new(name).load("uniform size=8M rate=1M sweep=30");
            vms.push(Vm::start(pair, &guest)?);
        }
        let words = ["migrate", "--all", "beta", "-o", "json"];
        let output = pair.host(Side::Alpha).spawn(&words)?.wait(MOVE_LIMIT)?.success()?;
        let printed = output.json()?;
        let reports = printed["reports"].as_array().cloned().unwrap_or_default();
        let done = reports.iter().filter(|report| report["outcome"] == "done").count();
        expect_that(
            done == 3 && reports.len() == 3,
            "the reports",
            "three that are done",
            &printed,
        )?;
        for vm in &mut vms {
            vm.arrived(pair)?;
            vm.check_works()?;
        }
        let again = pair.host(Side::Alpha).json(&["migrate", "--all", "beta"])?;
        let nothing = again["reports"].as_array().is_some_and(Vec::is_empty);
        expect_that(nothing, "a drain of an empty host", "no reports", &again)
    })
}
