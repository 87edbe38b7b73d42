//! The harness itself, without Sterna: a test that cannot notice anything is worth nothing.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sterna_e2e::command::{Running, tool_line, wait_for};
use sterna_e2e::{
    Accelerator, Error, Guest, GuestLog, GuestNetwork, Prober, QEMU, Qmp, Result, Side, World,
    ask_guest, can_run_here,
};
use sterna_model::Rate;

const BOOT_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn the_wire_carries_what_it_is_shaped_to() -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let world = World::new(GuestNetwork::Absent)?;
    let rate: Rate = "100M".parse().unwrap();
    world.shape(rate)?;
    let before = world.counters(Side::Alpha)?;
    let length_bytes = 12_500_000;
    let took = transfer(&world, length_bytes)?;
    assert!((0.8..1.6).contains(&took.as_secs_f64()), "100 Mbit at 100 Mbit/s took {took:?}");
    let sent_bytes = world.counters(Side::Alpha)?.sent_bytes - before.sent_bytes;
    let overhead = sent_bytes.checked_sub(length_bytes as u64);
    assert!(overhead.is_some_and(|bytes| bytes < 1_000_000), "{sent_bytes} bytes on the wire");
    world.unshape()?;
    let took = transfer(&world, length_bytes)?;
    assert!(took.as_secs_f64() < 0.5, "without a limit it took {took:?}");
    Ok(())
}

#[test]
fn a_cut_wire_carries_nothing_until_it_is_mended() -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let world = World::new(GuestNetwork::Absent)?;
    let ping = || -> Result<bool> {
        let mut command = world.command_at(Side::Alpha, Path::new("busybox"));
        command.args(["ping", "-c", "1", "-W", "1", Side::Beta.address()]);
        Ok(Running::start(&mut command)?.wait(BOOT_LIMIT)?.code == Some(0))
    };
    assert!(ping()?);
    world.cut()?;
    assert!(!ping()?);
    world.unshape()?;
    assert!(ping()?);
    Ok(())
}

#[test]
fn a_guest_answers_its_clients() -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let world = World::new(GuestNetwork::Bridged)?;
    let serial = world.folder().join("serial");
    let socket = world.folder().join("qmp");
    let guest = Guest::new("by-hand").load("uniform size=8M rate=4M sweep=30").tap().qmp(&socket);
    let argv = guest.argv(&serial)?;
    fs::write(&serial, "").unwrap();
    let _qemu = Running::start(world.command_at(Side::Beta, Path::new(&argv[0])).args(&argv[1..]))?;
    let log = GuestLog::new(&serial);
    let start = log.mark()?;
    log.wait_for_line("LOAD READY", start, BOOT_LIMIT)?;
    assert_eq!(world.qemus(Side::Beta)?.len(), 1);
    assert!(world.qemus(Side::Alpha)?.is_empty());

    let prober = Prober::start(&world, BOOT_LIMIT)?;
    assert!(ask_guest(&world, "sweep", BOOT_LIMIT)?.starts_with("OK "));
    let mut qmp = Qmp::connect(&socket)?;
    qmp.command("stop")?;
    assert_eq!(qmp.run_state()?, "paused");
    thread::sleep(Duration::from_millis(700));
    qmp.command("cont")?;
    prober.wait_for_echo(BOOT_LIMIT)?;
    let seen = prober.finish();
    assert!(seen.lived, "{seen:?}");
    assert!((700..2500).contains(&seen.longest_gap.as_millis()), "{seen:?}");

    let now = log.mark()?;
    log.wait_for_sweep(now, BOOT_LIMIT)?;
    log.wait_for_line("TICK ", now, BOOT_LIMIT)?;
    assert!(!log.ticks()?.is_empty());
    Ok(())
}

#[test]
fn a_closed_connection_is_no_life() -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let world = World::new(GuestNetwork::Bridged)?;
    let serial = world.folder().join("serial");
    let argv = Guest::new("dies").load("idle size=1M").tap().argv(&serial)?;
    let qemu = Running::start(world.command_at(Side::Alpha, Path::new(&argv[0])).args(&argv[1..]))?;
    wait_for("the guest", BOOT_LIMIT, || {
        Ok(fs::read_to_string(&serial).unwrap_or_default().contains("LOAD READY").then_some(()))
    })?;
    let prober = Prober::start(&world, BOOT_LIMIT)?;
    drop(qemu);
    let seen = prober.finish();
    assert!(!seen.lived && seen.echoed_bytes < seen.sent_bytes, "{seen:?}");
    Ok(())
}

#[test]
fn a_panic_leaves_nothing_behind() -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let world = World::new(GuestNetwork::Bridged)?;
    let (namespace, folder) = (world.namespace(Side::Alpha), world.folder().to_path_buf());
    let outcome = thread::spawn(move || {
        let started = world.command_at(Side::Alpha, Path::new("sleep")).arg("1000").spawn();
        let pid = started.map(|child| child.id());
        assert!(pid.is_err(), "the panic that this test is about: {pid:?}");
    })
    .join();
    assert!(outcome.is_err());
    assert!(!tool_line("ip", "netns list")?.contains(&namespace));
    assert!(!folder.exists());
    Ok(())
}

/// A world of a process that was killed: its name, without a holder of its lock.
#[test]
fn what_a_killed_run_has_left_is_removed() -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let name = format!("sterna-e2e-killed{}-0", std::process::id());
    let folder = std::env::temp_dir().join(&name);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("lock"), "").unwrap();
    tool_line("ip", &format!("netns add {name}-alpha"))?;
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &format!("{name}-alpha"), "sleep", "1000"]);
    let sleeper = Running::start(&mut command)?;
    thread::sleep(Duration::from_millis(300));
    let world = World::new(GuestNetwork::Absent)?;
    assert_eq!(sleeper.wait(Duration::from_secs(5))?.code, None, "a signal ended it");
    assert!(!folder.exists());
    assert!(!tool_line("ip", "netns list")?.contains(&name));
    assert!(world.folder().exists());
    Ok(())
}

#[test]
fn the_argument_vector_says_what_was_asked_for() -> Result<()> {
    let guest = Guest::new("g").machine("q35").cpus(2).vga().load("sparse size=8M");
    let argv =
        guest.disk(Path::new("/d.img")).tap().argv_with(Accelerator::Tcg, Path::new("/s"))?;
    let line = argv.join(" ");
    assert_eq!(argv[0], QEMU);
    for words in [
        "-machine q35",
        "-accel tcg",
        "-smp 2",
        "-m 262136k",
        "-vga std",
        "-serial file:/s",
        "load=sparse,size=8M disk=check ip=10.78.0.2/24",
        "file=/d.img,format=raw",
        "ifname=guest0",
    ] {
        assert!(line.contains(words), "{words} in {line}");
    }
    Ok(())
}

/// Sends zeros from alpha to beta; the time until the last one is there.
fn transfer(world: &World, length_bytes: usize) -> Result<Duration> {
    let busybox = Path::new("busybox");
    let start_nc = |side, arguments: &[&str]| {
        let mut command = world.command_at(side, busybox);
        command.arg("nc").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().map_err(Error::io("starting busybox nc"))
    };
    let mut receiver = start_nc(Side::Beta, &["-l", "-p", "9000"])?;
    thread::sleep(Duration::from_millis(300));
    let mut sender = start_nc(Side::Alpha, &[Side::Beta.address(), "9000"])?;
    let output = receiver.stdout.take();
    let reader = thread::spawn(move || count_until(output, length_bytes));
    let start = Instant::now();
    let written = sender.stdin.as_mut().map(|input| input.write_all(&vec![0; length_bytes]));
    let end = reader.join().ok().flatten();
    for child in [&mut sender, &mut receiver] {
        // Both fail only when it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
    let took = end.filter(|_| matches!(written, Some(Ok(())))).map(|end| end - start);
    took.ok_or_else(|| Error::unexpected("a transfer", "all bytes", format!("{written:?}")))
}

/// When so many bytes have come; none if it ends before.
fn count_until(output: Option<impl Read>, length_bytes: usize) -> Option<Instant> {
    let mut output = output?;
    let mut buffer = vec![0; 1 << 16];
    let mut left = length_bytes;
    while left > 0 {
        let length = output.read(&mut buffer).ok().filter(|length| *length > 0)?;
        left = left.saturating_sub(length);
    }
    Some(Instant::now())
}
