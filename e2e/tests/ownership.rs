//! Law 1 from outside: whenever an agent is killed in the hand-over, one copy of the guest runs in the
//! end, and never two (a copy that prints where the guest has left shows in its log).

use std::thread;
use std::time::{Duration, Instant};

use sterna_e2e::command::wait_for;
use sterna_e2e::{
    Error, Guest, HostSetup, Journals, MOVE_LIMIT, Pair, Peer, Phase, Qmp, Result, Setup, Side, Vm,
    expect_that, story, with_json,
};

/// From the guest's stop at the source to the kill; the hand-over takes some 50 ms.
const DELAYS_MS: [u64; 9] = [0, 5, 10, 15, 20, 30, 50, 80, 150];
/// A killed agent is away for so long.
const AWAY: Duration = Duration::from_millis(300);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const SETTLED_LIMIT: Duration = Duration::from_secs(30);

#[test]
fn the_sources_agent_dies_in_the_hand_over() -> Result<()> {
    one_copy_survives(|at| at)
}

#[test]
fn the_destinations_agent_dies_in_the_hand_over() -> Result<()> {
    one_copy_survives(Side::other)
}

/// The configuration does not name the destination: a restarted source finds it again by its journal.
#[test]
fn a_destination_that_was_given_by_its_address_is_asked_after_a_restart() -> Result<()> {
    let alpha = HostSetup { peer: Peer::Unknown, ..HostSetup::default() };
    story(&Setup { alpha, ..Setup::default() }, |pair| {
        let guest = Guest::new("heir").load("uniform size=16M rate=2M sweep=30");
        let mut vm = Vm::start(pair, &guest)?;
        let beta = format!("beta={}:7837", Side::Beta.address());
        let before = Journals::of(pair);
        let words = with_json(&["migrate", vm.name(), &beta]);
        let mut command = pair.host(Side::Alpha).spawn(&words)?;
        let came = Phase::Offered.wait(pair, Side::Alpha, &before, &mut command)?;
        expect_that(came, "the moment", "offered", "the end of the move")?;
        pair.host_mut(Side::Alpha).kill9();
        // What it had to say, it cannot say on the connection of before.
        thread::sleep(AWAY);
        pair.host_mut(Side::Alpha).restart()?;
        command.wait(MOVE_LIMIT)?;
        settle(pair, &mut vm)?;
        eprintln!("at {:?}", vm.at());
        vm.check_works()
    })
}

fn one_copy_survives(victim: fn(Side) -> Side) -> Result<()> {
    story(&Setup::default(), |pair| {
        let guest = Guest::new("heir").load("uniform size=16M rate=2M sweep=30");
        let mut vm = Vm::start(pair, &guest)?;
        for after in DELAYS_MS.map(Duration::from_millis) {
            let (from, victim) = (vm.at(), victim(vm.at()));
            let mut qmp = vm.qmp(pair)?;
            let command = pair.host(from).spawn(&vm.migrate_words(&[]))?;
            wait_for_stop(&mut qmp)?;
            drop(qmp);
            thread::sleep(after);
            pair.host_mut(victim).kill9();
            thread::sleep(AWAY);
            pair.host_mut(victim).restart()?;
            let code = command.wait(MOVE_LIMIT)?.code;
            let killed = format!(
                "{victim:?} killed {after:?} after the stop at {from:?}, exit code {code:?}"
            );
            let settled = settle(pair, &mut vm);
            eprintln!("{killed}: {settled:?} at {:?}", vm.at());
            settled?;
            vm.check_ticks()?;
        }
        vm.check_works()
    })
}

/// Returns at once when the guest does not run any more, also when its QEMU is gone.
fn wait_for_stop(qmp: &mut Qmp) -> Result<()> {
    let start = Instant::now();
    while qmp.run_state().is_ok_and(|state| state == "running") {
        if start.elapsed() > STOP_LIMIT {
            return Err(Error::unexpected("the guest in a move", "that it is stopped", "it runs"));
        }
    }
    Ok(())
}

/// Waits until one host has the guest and one QEMU is left; takes note of where.
fn settle(pair: &Pair, vm: &mut Vm) -> Result<()> {
    let mut seen = String::new();
    let owner = wait_for("one running copy and no other QEMU", SETTLED_LIMIT, || {
        let alpha = found_at(pair, vm, Side::Alpha)?;
        let beta = found_at(pair, vm, Side::Beta)?;
        seen = format!("(state, QEMUs) {alpha:?} at alpha, {beta:?} at beta");
        Ok(match (is_owner(&alpha), is_nothing(&alpha), is_owner(&beta), is_nothing(&beta)) {
            (true, _, _, true) => Some(Side::Alpha),
            (_, true, true, _) => Some(Side::Beta),
            _ => None,
        })
    });
    let owner = owner.map_err(|_| Error::unexpected("the copies of the guest", "one", seen))?;
    if owner == vm.at() { Ok(()) } else { vm.arrived(pair) }
}

/// The VM's state at a host, and how many QEMUs run there.
fn found_at(pair: &Pair, vm: &Vm, side: Side) -> Result<(String, usize)> {
    Ok((pair.host(side).vm_state(vm.name())?, pair.world().qemus(side)?.len()))
}

fn is_owner(found: &(String, usize)) -> bool {
    found.0 == "running" && found.1 == 1
}

fn is_nothing(found: &(String, usize)) -> bool {
    matches!(&*found.0, "absent" | "migrated") && found.1 == 0
}
