//! The agents' logs: what is said of a move names its job and its VM, so that it can be found among others.

use std::fs;

use serde_json::Value;
use sterna_e2e::{Guest, HostSetup, LogTo, Result, Setup, Side, Vm, expect_that, story};

#[test]
fn every_line_of_a_move_names_its_job_and_its_vm() -> Result<()> {
    story(&Setup::default(), |pair| {
        let mut vm = Vm::start(pair, &Guest::new("heir").load("uniform size=8M rate=1M sweep=30"))?;
        let moved = vm.migrate(pair, &[])?;
        let job = moved.report["job"].as_str().unwrap_or_default().to_owned();
        for side in Side::BOTH {
            let log = fs::read_to_string(pair.host(side).folder().join("agent.log")).unwrap();
            let of_move: Vec<&str> = log.lines().filter(|line| line.contains(&job)).collect();
            let has_ends = of_move.iter().any(|line| line.contains("begins"))
                && of_move.iter().any(|line| line.contains("has ended"));
            expect_that(has_ends, "the log of a move", "its beginning and its end", &log)?;
            let named = format!("move{{job={job} vm=heir}}");
            let is_so = of_move.iter().all(|line| line.contains(&named));
            expect_that(is_so, "each line of a move", &named, of_move.join("\n"))?;
        }
        Ok(())
    })
}

#[test]
fn a_journal_finds_a_move_by_its_job_and_its_vm() -> Result<()> {
    let host = HostSetup { log: LogTo::Journal, ..HostSetup::default() };
    story(&Setup { alpha: host.clone(), beta: host, ..Setup::default() }, |pair| {
        let mut vm = Vm::start(pair, &Guest::new("heir").load("uniform size=8M rate=1M sweep=30"))?;
        let moved = vm.migrate(pair, &[])?;
        let job = moved.report["job"].as_str().unwrap_or_default().to_owned();
        for side in Side::BOTH {
            let journal = pair.host(side).journal()?;
            let of_move: Vec<&Value> =
                journal.iter().filter(|it| it["STERNA_JOB"] == job).collect();
            let all = || format!("{journal:#?}");
            let says = |text: &str| {
                of_move.iter().any(|it| it["MESSAGE"].as_str().is_some_and(|it| it.contains(text)))
            };
            let has_ends = says("begins") && says("has ended");
            expect_that(has_ends, "the journal of a move", "its beginning and its end", all())?;
            let is_so = of_move.iter().all(|it| {
                it["STERNA_VM"] == "heir"
                    && it["SYSLOG_IDENTIFIER"] == "sterna"
                    && it["PRIORITY"] == "5"
            });
            expect_that(
                is_so,
                "each entry of a move",
                "its VM, who wrote it, how grave it is",
                all(),
            )?;
        }
        Ok(())
    })
}
