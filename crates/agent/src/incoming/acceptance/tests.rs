//! What a destination refuses by its QEMU: machine types, versions and processors.

use std::collections::BTreeSet;
use std::path::Path;

use sterna_host::qmp::{
    Accelerator, CpuFeatures, CpuModel, Machine, Program, Version, VersionNumber,
};
use sterna_model::{BlockName, ByteCount};
use sterna_qemu_args::{Description, RunningFacts};
use sterna_wire::evidence::{Accelerator as Executes, CpuEvidence, Evidence, PostCopy};

use super::program::{Programs, refusals};

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// QEMU 7.2 on a host of another make than the sources' here.
fn program() -> Program {
    let machine = |name: &str, alias: Option<&str>| Machine {
        name: name.into(),
        alias: alias.map(str::to_owned),
        ..Machine::default()
    };
    let model = |name: &str, lacks: &[&str]| CpuModel {
        name: name.into(),
        unavailable_features: lacks.iter().map(|name| (*name).to_owned()).collect(),
    };
    Program {
        version: Version {
            qemu: VersionNumber { major: 7, minor: 2, micro: 22 },
            package: String::new(),
        },
        machines: vec![machine("pc-i440fx-7.2", Some("pc")), machine("microvm", None)],
        cpu_models: vec![
            model("max", &[]),
            model("host", &[]),
            model("EPYC", &["sha-ni", "svm"]),
            model("qemu64", &[]),
        ],
        whole_cpu: Some(CpuFeatures(set(&["aes", "avx2", "kvm-pv-eoi", "vendor=AuthenticAMD"]))),
    }
}

fn description(argv: &str, version: &str, machine_type: &str) -> Description {
    let argv: Vec<String> = argv.split_whitespace().map(str::to_owned).collect();
    let facts = RunningFacts {
        machine_type: machine_type.into(),
        ram_block: BlockName::new(b"pc.ram").unwrap(),
        ram_bytes: ByteCount(64 << 20),
        qemu_version: version.into(),
        program_path: None,
        working_dir: None,
        agent_qmp: None,
        image_formats: Vec::new(),
    };
    Description::from_argv(&argv, &facts).unwrap()
}

fn evidence(model: &str, features: &[&str], lacks: &[&str]) -> Evidence {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let cpu = CpuEvidence { model: model.into(), features: owned(features), lacks: owned(lacks) };
    let (accelerator, post_copy) = (Executes::Kvm, PostCopy::Never);
    Evidence { accelerator, cpu: Some(cpu), disks: Vec::new(), post_copy }
}

/// The codes and reasons for a source with this CPU.
fn of_cpu(option: &str, evidence: &Evidence) -> Vec<(String, String)> {
    let description = description(&format!("qemu -cpu {option}"), "7.2.1", "pc-i440fx-7.2");
    let refusals = refusals(&program(), &description, Some(evidence));
    refusals.into_iter().map(|refusal| (refusal.code, refusal.reason)).collect()
}

fn codes(argv: &str, version: &str, machine_type: &str) -> Vec<String> {
    let description = description(argv, version, machine_type);
    let refusals = refusals(&program(), &description, None);
    refusals.into_iter().map(|refusal| refusal.code).collect()
}

#[test]
fn machine_types_and_versions_must_be_known_here() {
    assert!(codes("qemu", "7.2.1", "pc-i440fx-7.2").is_empty());
    assert!(codes("qemu", "7.2.99", "pc").is_empty(), "an alias; a release of the same series");
    assert!(codes("qemu", "6.0.0", "microvm").is_empty());
    assert_eq!(codes("qemu", "10.0.2", "pc-i440fx-7.2"), ["qemu-older"]);
    assert_eq!(codes("qemu", "7.2.1", "pc-q35-10.0"), ["machine-unknown"]);
    assert_eq!(codes("qemu", "8.0.0", "x"), ["qemu-older", "machine-unknown"], "all are told");
    assert!(codes("qemu", "of my own", "pc").is_empty(), "a version that says nothing");
}

#[test]
fn a_cpu_model_must_be_known_here() {
    assert!(codes("qemu -cpu EPYC,+x2apic", "7.2.1", "pc").is_empty());
    assert_eq!(codes("qemu -cpu GraniteRapids", "7.2.1", "pc"), ["cpu-unknown"]);
    let mute = Program { cpu_models: Vec::new(), ..program() };
    let other = description("qemu -cpu cortex-a57", "7.2.1", "pc");
    assert!(refusals(&mute, &other, None).is_empty(), "an architecture that does not tell");
}

#[test]
fn what_the_guest_has_of_a_model_must_be_here() {
    let refused = of_cpu("EPYC", &evidence("EPYC", &[], &["svm"]));
    let (code, reason) = &refused[0];
    assert_eq!((refused.len(), &**code), (1, "cpu-lacks-features"));
    assert!(reason.contains("sha-ni") && !reason.contains("svm"), "{reason}");
    assert!(of_cpu("EPYC", &evidence("EPYC", &[], &["svm", "sha-ni"])).is_empty());
    assert!(of_cpu("EPYC,-sha-ni,svm=off", &evidence("EPYC", &[], &[])).is_empty());
    assert!(of_cpu("qemu64", &evidence("qemu64", &[], &[])).is_empty());
}

#[test]
fn a_whole_processor_must_be_the_same() {
    let here = ["aes", "avx2", "vendor=AuthenticAMD"];
    for model in ["host", "max"] {
        assert!(of_cpu(model, &evidence(model, &here, &[])).is_empty(), "{model}");
        let refused =
            of_cpu(model, &evidence(model, &["aes", "avx512f", "vendor=GenuineIntel"], &[]));
        let (code, reason) = &refused[0];
        assert_eq!((refused.len(), &**code), (1, "cpu-differs"), "{model}");
        for part in ["avx512f", "vendor=GenuineIntel", "avx2"] {
            assert!(reason.contains(part), "{reason}");
        }
        assert!(!reason.contains("aes") && !reason.contains("kvm-pv-eoi"), "{reason}");
    }
    let without = of_cpu("host,-avx2", &evidence("host", &["aes", "vendor=AuthenticAMD"], &[]));
    assert!(without.is_empty(), "{without:?}");
}

/// A peer that lies or rambles makes a refusal of a readable length.
#[test]
fn much_evidence_is_cut() {
    let many: Vec<String> = (0..512).map(|n| format!("feature-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let refused = of_cpu("host", &evidence("host", &many, &[]));
    assert!(refused[0].1.len() < 1000 && refused[0].1.contains("and 500 more"), "{refused:?}");
    // A model that is not the description's own changes nothing about it.
    assert!(of_cpu("qemu64", &evidence("EPYC", &[], &[])).len() <= 1);
}

#[tokio::test]
async fn a_program_is_asked_once_until_its_file_changes() {
    let folder = std::env::temp_dir().join(format!("sterna-programs-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (script, count) = (folder.join("qemu"), folder.join("count"));
    let write = |version: u32| {
        let text = format!(
            "#!/bin/sh\necho >> {}\nread line\necho '{{\"return\": {{}}}}'\n\
             echo '{{\"return\": {{\"qemu\": {{\"major\": {version}}}}}}}'\necho '{{\"return\": []}}'\n",
            count.display()
        );
        std::fs::write(&script, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).unwrap();
    };
    let asked = || std::fs::read_to_string(&count).unwrap().lines().count();
    let programs = Programs::default();
    write(7);
    for _ in 0..2 {
        let program = programs.ask(&script, Accelerator::Tcg).await.unwrap();
        assert_eq!(program.version.qemu.major, 7);
    }
    assert_eq!(asked(), 1);
    write(8);
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    std::fs::File::options().write(true).open(&script).unwrap().set_modified(later).unwrap();
    assert_eq!(programs.ask(&script, Accelerator::Tcg).await.unwrap().version.qemu.major, 8);
    assert_eq!(asked(), 2);
    let error = programs.ask(Path::new("/no/such/qemu"), Accelerator::Tcg).await.unwrap_err();
    assert_eq!(super::program::unable(&error).code, "qemu-unusable");
    std::fs::remove_dir_all(folder).unwrap();
}
