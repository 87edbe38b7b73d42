//! A disk on storage that both hosts see: never two writers, never none, and no block lost.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sterna_e2e::command::wait_for;
use sterna_e2e::{Guest, Pair, Result, Setup, Side, Vm, make_disk, story};
use sterna_model::Rate;

/// The guest says how its disk is every five seconds.
const DISK_LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_shared_disk_goes_with_its_guest() -> Result<()> {
    story(&Setup::default(), |pair| {
        let image = pair.shared_folder().join("disk.img");
        let mut vm = start_with_disk(pair, &image)?;
        check_disk(&vm)?;
        check_only_writer(pair, &vm, &image)?;
        vm.migrate(pair, &[])?;
        check_only_writer(pair, &vm, &image)?;
        check_disk(&vm)?;
        vm.check_works()
    })
}

#[test]
fn a_move_that_fails_leaves_the_disk_with_its_guest() -> Result<()> {
    story(&Setup::default(), |pair| {
        let image = pair.shared_folder().join("disk.img");
        let vm = start_with_disk(pair, &image)?;
        pair.world().shape(Rate { bytes_per_second: 1_250_000 })?;
        let moved = vm.try_migrate(pair, &["--strategy", "precopy", "--timeout", "4"])?;
        moved.check(1, "failed", "source")?;
        vm.check_still_here(pair)?;
        check_only_writer(pair, &vm, &image)?;
        check_disk(&vm)
    })
}

fn start_with_disk(pair: &Pair, image: &Path) -> Result<Vm> {
    make_disk(image, 16 << 20)?;
    Vm::start(pair, &Guest::new("keeper").load("uniform size=16M rate=2M sweep=30").disk(image))
}

/// The guest has checked its disk since now.
fn check_disk(vm: &Vm) -> Result<()> {
    let now = vm.log().mark()?;
    vm.log().wait_for_line("DISK OK", now, DISK_LIMIT).map(drop)
}

/// Of all QEMUs only the guest's own has the image locked.
fn check_only_writer(pair: &Pair, vm: &Vm, image: &Path) -> Result<()> {
    let holders = || -> Result<Vec<u32>> {
        let mut all = pair.world().qemus(Side::Alpha)?;
        all.extend(pair.world().qemus(Side::Beta)?);
        Ok(all.into_iter().filter(|pid| has_locked(*pid, image)).collect())
    };
    wait_for("the image's lock at the guest's QEMU alone", Duration::from_secs(5), || {
        Ok((holders()? == [vm.pid()]).then_some(()))
    })
}

/// QEMU locks images with open file description locks, which show in the descriptor's own file.
fn has_locked(pid: u32, image: &Path) -> bool {
    let Ok(inode) = fs::metadata(image).map(|metadata| metadata.ino()) else { return false };
    let folder = PathBuf::from(format!("/proc/{pid}/fd"));
    let descriptors = fs::read_dir(&folder).into_iter().flatten().flatten();
    let of_image = descriptors
        .filter(|entry| fs::metadata(entry.path()).is_ok_and(|metadata| metadata.ino() == inode));
    of_image.into_iter().any(|entry| {
        let info = format!("/proc/{pid}/fdinfo/{}", entry.file_name().to_string_lossy());
        fs::read_to_string(info).is_ok_and(|text| text.contains("OFDLCK"))
    })
}
