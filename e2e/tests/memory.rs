//! Memory: a destination whose memory runs out, and the memories of both ends side by side.

use std::fs;
use std::os::unix::fs::FileExt;

use serde_json::json;
use sterna_e2e::command::wait_for;
use sterna_e2e::{
    Error, Guest, HostSetup, MOVE_LIMIT, MemoryLimit, Move, Pair, Qmp, Result, Setup, Side, Vm,
    expect_that, story,
};
use sterna_model::Rate;

/// So that a move takes some seconds, in which something can happen.
const LINK: Rate = Rate { bytes_per_second: 12_500_000 };
/// So that its memory can be looked at meanwhile.
const SLOW: Rate = Rate { bytes_per_second: 4_000_000 };
const UNDER_WAY_BYTES: u64 = 5_000_000;
/// By then the guest has written again what was sent first.
const SENT_BYTES: u64 = 25_000_000;
/// Less than the guest still has to send when its move is under way.
const LEFT_BYTES: u64 = 20 << 20;

const PAGE_BYTES: usize = 4096;
/// The load's working set alone has more.
const USED_PAGES_MIN: usize = (48 << 20) / PAGE_BYTES;

#[test]
fn a_destination_whose_memory_runs_out_costs_no_guest() -> Result<()> {
    let limited = HostSetup { memory: MemoryLimit::Group, ..HostSetup::default() };
    let told = story(&Setup { beta: limited, ..Setup::default() }, |pair| {
        let guest = Guest::new("survivor").load("uniform size=128M rate=1M sweep=30");
        let mut vm = Vm::start(pair, &guest)?;
        pair.world().shape(LINK)?;
        let command = vm.begin_move(pair, &[], UNDER_WAY_BYTES)?;
        // Somebody else has taken the rest. The kernel ends the largest of the host's processes then: the QEMU that waits.
        pair.host(Side::Beta).leave_memory(Some(LEFT_BYTES))?;
        let moved = Move::of(command.wait(MOVE_LIMIT)?)?;
        moved.check(1, "failed", "source")?;
        let why = moved.report["error"].to_string();
        let is_named = why.contains("at the destination") && why.contains("for want of memory");
        expect_that(is_named, "the error", "the destination, and its memory", &why)?;
        // Nothing is left over there, and the guest here has lost nothing.
        vm.check_still_here(pair)?;
        let state = pair.host(Side::Beta).vm_state(vm.name())?;
        expect_that(state == "absent", "the VM at the destination", "absent", &state)?;
        pair.host(Side::Beta).leave_memory(None)?;
        pair.world().unshape()?;
        vm.migrate(pair, &[])?;
        vm.check_works()
    });
    match told {
        Err(Error::Unavailable(why)) => {
            eprintln!("SKIPPED: {why}");
            Ok(())
        }
        told => told,
    }
}

/// What the guest wrote while its pages were copied arrives, and nothing else: with the guest paused by its user in the
/// rounds, all of its memory stands still from then on, here and there.
#[test]
fn both_ends_have_the_same_memory() -> Result<()> {
    story(&Setup::default(), |pair| {
        let guest = Guest::new("twin").load("uniform size=48M rate=8M text=30 duplicate=20");
        let mut vm = Vm::start(pair, &guest)?;
        for options in [&["--verify", "full"][..], &[]] {
            pair.world().shape(LINK)?;
            let command = vm.begin_move(pair, options, SENT_BYTES)?;
            vm.qmp(pair)?.command("stop")?;
            let ours = memory_of(pair, &vm, &guest)?;
            let moved = Move::of(command.wait(MOVE_LIMIT)?)?;
            moved.check_done()?;
            vm.arrived(pair)?;
            compare(&ours, &memory_of(pair, &vm, &guest)?)?;
            if !options.is_empty() {
                let hashed = moved.number("/verify/pages_hashed")?;
                let pages = f64::from(guest.memory_kib() / 4);
                expect_that(hashed >= pages, "verify.pages_hashed", "all pages", hashed)?;
            }
            pair.world().unshape()?;
            vm.qmp(pair)?.command("cont")?;
            vm.check_works()?;
        }
        Ok(())
    })
}

/// What somebody writes to the guest's memory behind QEMU's back, when it has been copied, arrives with `--verify full`.
#[test]
fn a_page_that_changed_behind_the_copys_back_is_found() -> Result<()> {
    story(&Setup::default(), |pair| {
        let guest = Guest::new("victim").load("idle size=48M text=30 duplicate=20");
        let mut vm = Vm::start(pair, &guest)?;
        for (options, arrives) in [(&[][..], false), (&["--verify", "full"], true)] {
            pair.world().shape(SLOW)?;
            let command = vm.begin_move(pair, options, UNDER_WAY_BYTES)?;
            vm.qmp(pair)?.command("stop")?;
            wait_for_rounds(&mut vm.qmp(pair)?)?;
            let before = memory_of(pair, &vm, &guest)?;
            let offset = unused_page(&before)?;
            write_behind(&vm, &guest, offset)?;
            let ours = memory_of(pair, &vm, &guest)?;
            expect_that(ours != before, "the guest's memory", "that it changed", "the same")?;
            pair.world().unshape()?;
            let moved = Move::of(command.wait(MOVE_LIMIT)?)?;
            moved.check_done()?;
            vm.arrived(pair)?;
            let theirs = memory_of(pair, &vm, &guest)?;
            let expected = if arrives { &ours } else { &before };
            compare(expected, &theirs)?;
            vm.qmp(pair)?.command("cont")?;
            vm.check_works()?;
        }
        Ok(())
    })
}

/// All pages were sent once: QEMU has begun to look for what changed.
fn wait_for_rounds(qmp: &mut Qmp) -> Result<()> {
    wait_for("rounds after the first", MOVE_LIMIT, || {
        let migration = qmp.command("query-migrate")?;
        Ok((migration["ram"]["dirty-sync-count"].as_u64() >= Some(2)).then_some(()))
    })
}

/// The last page that is zero, where the guest's kernel has not been yet; in bytes.
fn unused_page(memory: &[u8]) -> Result<usize> {
    let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let page = memory.chunks(PAGE_BYTES).rposition(is_zero);
    let page =
        page.ok_or_else(|| Error::unexpected("the guest's memory", "a zero page", "none"))?;
    Ok(page * PAGE_BYTES)
}

/// Writes to the memory of a guest's QEMU from outside, of which QEMU's dirty log hears nothing.
fn write_behind(vm: &Vm, guest: &Guest, offset: usize) -> Result<()> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", vm.pid()))
        .map_err(Error::io("reading QEMU's maps"))?;
    let bytes = u64::from(guest.memory_kib()) << 10;
    let start_of = |line: &str| {
        let (start, rest) = line.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(rest.split(' ').next()?, 16).ok()?;
        (end - start == bytes).then_some(start)
    };
    let start = maps.lines().find_map(start_of);
    let start =
        start.ok_or_else(|| Error::unexpected("QEMU's maps", "the guest's memory", &maps))?;
    let memory = fs::File::options().write(true).open(format!("/proc/{}/mem", vm.pid()));
    let memory = memory.map_err(Error::io("opening QEMU's memory"))?;
    let written = memory.write_all_at(b"behind the copy's back", start + offset as u64);
    written.map_err(Error::io("writing to QEMU's memory"))
}

/// All of the guest's memory, as its QEMU sees it where it is now.
fn memory_of(pair: &Pair, vm: &Vm, guest: &Guest) -> Result<Vec<u8>> {
    let path = pair.shared_folder().join("memory");
    let bytes = u64::from(guest.memory_kib()) << 10;
    let to = path.display().to_string();
    let arguments = json!({"val": 0, "size": bytes, "filename": to});
    vm.qmp(pair)?.command_with("pmemsave", &arguments)?;
    let memory = fs::read(&path).map_err(Error::io("reading the guest's memory"))?;
    fs::remove_file(&path).map_err(Error::io("removing the guest's memory"))?;
    expect_that(memory.len() as u64 == bytes, "the guest's memory", bytes, memory.len())?;
    Ok(memory)
}

fn compare(ours: &[u8], theirs: &[u8]) -> Result<()> {
    let pages = ours.chunks(PAGE_BYTES).zip(theirs.chunks(PAGE_BYTES));
    let differing: Vec<_> = (0..)
        .zip(pages)
        .filter(|(_, (one, other))| one != other)
        .map(|(page, _): (u32, _)| page)
        .collect();
    let used = ours.chunks(PAGE_BYTES).filter(|page| page.iter().any(|byte| *byte != 0)).count();
    expect_that(used > USED_PAGES_MIN, "pages that are not zero", USED_PAGES_MIN, used)?;
    let found = format!("{} that differ, the first {:?}", differing.len(), differing.first());
    expect_that(differing.is_empty(), "the pages of both ends", "the same", found)
}
