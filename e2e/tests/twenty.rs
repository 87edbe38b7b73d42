//! The same guest to and fro: what one move in many would lose shows here.

use std::fs;

use serde_json::json;
use sterna_e2e::{Error, Guest, Result, Setup, Vm, repository, story};

#[test]
fn twenty_moves_in_a_row_lose_no_page() -> Result<()> {
    let is_soak = std::env::var_os("STERNA_SOAK").is_some_and(|value| value == "1");
    let moves = if is_soak { 50 } else { 20 };
    story(&Setup::default(), |pair| {
        let load = "hotset size=24M rate=6M text=30 duplicate=20 sweep=30";
        let mut vm = Vm::start(pair, &Guest::new("commuter").load(load))?;
        let (mut totals_ms, mut downtimes_ms) = (Vec::new(), Vec::new());
        for number in 1..=moves {
            let moved = vm.migrate(pair, &[])?;
            vm.check_ticks()?;
            totals_ms.push(moved.number("/total_ms")?);
            downtimes_ms.push(moved.number("/downtime_ms")?);
            eprintln!("move {number}: {} ms down", moved.number("/downtime_ms")?);
        }
        vm.check_works()?;
        let sweeps = vm.log().sweeps()?;
        if is_soak {
            keep(&json!({
                "guest": load, "moves": moves, "sweeps_without_a_bad_page": sweeps,
                "total_ms": totals_ms, "downtime_ms": downtimes_ms,
            }))?;
        }
        Ok(())
    })
}

/// The result of a long run is committed.
fn keep(result: &serde_json::Value) -> Result<()> {
    let folder = repository().join("e2e/results");
    fs::create_dir_all(&folder).map_err(Error::io("making e2e/results"))?;
    fs::write(folder.join("moves-in-a-row.json"), format!("{result:#}\n"))
        .map_err(Error::io("writing the result"))
}
