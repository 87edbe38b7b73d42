//! The unit file: systemd understands every line of it, and guests outlive the service.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, process};

fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/sterna.service");
    fs::read_to_string(path).unwrap()
}

#[test]
fn systemd_understands_it() {
    if !Path::new("/usr/bin/systemd-analyze").exists() {
        assert!(env::var_os("CI").is_none(), "expected systemd-analyze in CI, found none");
        return eprintln!("SKIPPED: there is no systemd-analyze here");
    }
    let folder: PathBuf = env::temp_dir().join(format!("sterna-unit-{}", process::id()));
    fs::create_dir_all(&folder).unwrap();
    let program = env!("CARGO_BIN_EXE_sterna");
    let file = folder.join("sterna.service");
    let text = unit().replace("/usr/local/bin/sterna", program);
    // The manual pages are installed with it, and not here.
    let documentation = |line: &&str| !line.starts_with("Documentation=");
    let text: Vec<&str> = text.lines().filter(documentation).collect();
    fs::write(&file, text.join("\n")).unwrap();
    let verified = Command::new("systemd-analyze").arg("verify").arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    fs::remove_dir_all(&folder).unwrap();
    // What it says of other units of this machine is not about ours.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("sterna.service")).collect();
    assert!(ours.is_empty(), "{said}");
}

#[test]
fn guests_outlive_the_service() {
    let unit = unit();
    for line in
        ["Type=notify", "KillMode=process", "OOMPolicy=continue", "RuntimeDirectoryPreserve=yes"]
    {
        assert!(unit.lines().any(|it| it == line), "{line}");
    }
}
