//! The QMP client against a real QEMU.

use std::time::Duration;

use crate::support::{SOON, Vm, qemu};
use serde_json::{Value, json};
use sterna_host::process::Exit;
use sterna_host::qmp::{
    Accelerator, Delivery, MigrationParameters, MigrationStatus, Qmp, QmpError, RunState,
};

#[tokio::test]
async fn stops_resumes_and_describes_a_machine() {
    let Some(qemu) = qemu() else { return };
    let uuid = "0a1b2c3d-0000-4111-8222-ffffffffffff";
    let vm = Vm::start(&qemu, &["-m", "65528k", "-name", "tern", "-uuid", uuid]).await;
    let qmp = &vm.qmp;
    let mut events = qmp.subscribe();
    assert!(qmp.query_status().await.unwrap().running);
    qmp.stop().await.unwrap();
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Paused);
    qmp.cont().await.unwrap();
    assert!(qmp.query_status().await.unwrap().running);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let next = tokio::time::timeout(SOON, events.next()).await.unwrap();
        let Delivery::Event(event) = next else { panic!("{next:?}") };
        if matches!(event.name.as_str(), "STOP" | "RESUME") {
            seen.push(event);
        }
    }
    assert!(seen[0].name == "STOP" && seen[1].name == "RESUME");
    assert!(seen[1].micros() >= seen[0].micros() && seen[0].micros() > 0);

    assert_eq!(qmp.query_uuid().await.unwrap().to_string(), uuid);
    assert_eq!(qmp.query_name().await.unwrap().as_deref(), Some("tern"));
    assert_eq!(qmp.query_cpus_fast().await.unwrap().len(), 1);
    assert_eq!(qmp.query_kvm().await.unwrap(), Accelerator::Tcg);
    assert!(qmp.query_version().await.unwrap().qemu.major >= 7);
    let memory = qmp.query_memdev().await.unwrap();
    assert_eq!(memory[0].id.as_deref(), Some("pc.ram"));
    assert_eq!(memory[0].size, 65528 << 10);
    assert!(!memory[0].share);
    assert_eq!(qmp.query_memory_devices().await.unwrap(), []);
    assert_eq!(qmp.query_block().await.unwrap(), []);
    let machines = qmp.query_machines().await.unwrap();
    let pc = machines.iter().find(|machine| machine.alias.as_deref() == Some("pc")).unwrap();
    assert_eq!(pc.default_ram_id.as_deref(), Some("pc.ram"));
    assert_eq!(
        qmp.qom_get("/machine", "type").await.unwrap(),
        json!(format!("{}-machine", pc.name))
    );
    assert!(qmp.hmp("info name").await.unwrap().contains("tern"));
    qmp.announce_self().await.unwrap();

    qmp.quit().await.unwrap();
    assert_eq!(vm.process.exited().await.unwrap(), Exit::Code(0));
    assert!(tokio::time::timeout(SOON, qmp.closed()).await.unwrap().is_closed());
}

#[tokio::test]
async fn asks_the_schema_what_there_is() {
    let Some(qemu) = qemu() else { return };
    let vm = Vm::start(&qemu, &["-machine", "none"]).await;
    let schema = vm.qmp.query_schema().await.unwrap();
    assert!(schema.has_command("migrate-incoming") && !schema.has_command("teleport"));
    assert!(schema.command_takes("migrate-set-parameters", "max-bandwidth"));
    assert!(schema.command_takes("migrate-set-parameters", "block-bitmap-mapping"));
    assert!(!schema.command_takes("migrate-set-parameters", "speed-of-light"));
    assert!(schema.has_event("MIGRATION_PASS"));
    assert!(schema.has_migration_capability("late-block-activate"));
    assert!(!schema.has_migration_capability("teleport"));
    assert!(schema.has_blockdev_driver("null-co") && !schema.has_blockdev_driver("tape"));
    let refused = vm.qmp.execute("teleport", Value::Null, SOON).await.unwrap_err();
    assert!(refused.is_unknown_command(), "{refused}");
}

#[tokio::test]
async fn drives_a_migration_into_a_socket() {
    let Some(qemu) = qemu() else { return };
    let vm = Vm::start(&qemu, &["-m", "65528k"]).await;
    let qmp = &vm.qmp;
    assert_eq!(qmp.query_migrate().await.unwrap().status, MigrationStatus::None);
    qmp.set_migration_capabilities(&[("events", true)]).await.unwrap();
    assert_eq!(qmp.query_migration_capabilities().await.unwrap(), ["events"]);
    let fast = MigrationParameters {
        max_bandwidth: Some(1 << 30),
        downtime_limit: Some(1000),
        ..MigrationParameters::default()
    };
    qmp.set_migration_parameters(&fast).await.unwrap();

    // Through a descriptor that was handed over: QEMU needs no path for it.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let getfd = json!({ "fdname": "stream" });
    qmp.execute_with_fd("getfd", getfd, theirs.into(), SOON).await.unwrap();
    let read = std::thread::spawn(move || {
        let mut stream = Vec::new();
        std::io::Read::read_to_end(&mut { ours }, &mut stream).map(|_| stream)
    });
    let mut events = qmp.subscribe();
    qmp.migrate("fd:stream").await.unwrap();
    loop {
        let next = tokio::time::timeout(SOON, events.next()).await.unwrap();
        let Delivery::Event(event) = next else { panic!("{next:?}") };
        if event.name == "MIGRATION" && event.data["status"] == "completed" {
            break;
        }
    }
    let info = qmp.query_migrate().await.unwrap();
    assert_eq!(info.status, MigrationStatus::Completed);
    assert!(info.status.is_over());
    assert!(info.ram.unwrap().total >= 65528 << 10);
    assert!(!qmp.query_status().await.unwrap().running, "completed, and nobody resumed it");
    qmp.cont_after_migration(SOON).await.unwrap();
    assert_eq!(qmp.query_status().await.unwrap().status, RunState::Running);
    let stream = read.join().unwrap().unwrap();
    assert!(stream.starts_with(b"QEVM"));
}

#[tokio::test]
async fn notices_that_qemu_was_killed() {
    let Some(qemu) = qemu() else { return };
    let vm = Vm::start(&qemu, &["-machine", "none"]).await;
    let kill = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        vm.process.kill_and_reap(SOON).await.unwrap()
    };
    let (end, exit) = tokio::join!(vm.qmp.closed(), kill);
    assert!(end.is_closed());
    assert_eq!(exit, Exit::Signal(9));
    let late = Qmp::connect(&vm.folder.file("qmp"), Duration::from_millis(50)).await;
    assert!(matches!(late, Err(QmpError::Connect { .. })));
}
