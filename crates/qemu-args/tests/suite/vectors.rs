//! Argument vectors as people and tools write them, described and rebuilt.

use crate::common::{arrive, described, facts, place, policy, words};
use sterna_model::{BlockName, ByteCount};
use sterna_qemu_args::{
    Access, Description, FileKind, Place, Policy, Rebuilt, RunningFacts, rebuild,
};

const BUSYBOX: &str = "-accel tcg -M pc -m 262136k -smp 2 -display none -serial file:/tmp/a.log \
    -kernel /boot/vmlinuz -initrd /x/guest.img -append 'console=ttyS0 quiet' -nodefaults -vga std \
    -netdev tap,id=n0,ifname=tap0,script=no,downscript=no \
    -device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01 \
    -drive file=/srv/vm/disks/disk.raw,if=virtio,format=raw,cache=none,file.locking=on \
    -qmp unix:/tmp/q.sock,server=on,wait=off -qmp unix:/run/agent/qmp.sock,server=on,wait=off";

const Q35: &str = "-machine q35,accel=kvm,smm=on,kernel_irqchip=split -cpu host,-svm -m 4G,slots=2,maxmem=8G -smp 4,sockets=1,cores=4 \
    -global driver=cfi.pflash01,property=secure,value=on -global ICH9-LPC.disable_s3=1 \
    -drive if=pflash,format=raw,unit=0,file=/usr/share/OVMF/OVMF_CODE.fd,readonly=on \
    -drive if=pflash,format=raw,unit=1,file=/srv/vars.fd \
    -object memory-backend-ram,id=ram0,size=2G,host-nodes=0,policy=bind \
    -object memory-backend-file,id=ram1,size=2G,mem-path=/dev/hugepages,share=off,prealloc=on \
    -numa node,nodeid=0,cpus=0-1,memdev=ram0 -numa node,nodeid=1,cpus=2-3,memdev=ram1 \
    -object memory-backend-memfd,id=dimm,size=1G -device pc-dimm,id=d0,memdev=dimm \
    -device pcie-root-port,id=rp1,slot=1 -device virtio-blk-pci,drive=hd0,bus=rp1 \
    -blockdev '{\"driver\":\"file\",\"filename\":\"/srv/a.qcow2\",\"node-name\":\"f0\",\"auto-read-only\":true}' \
    -blockdev '{\"driver\":\"qcow2\",\"file\":\"f0\",\"backing\":null,\"node-name\":\"hd0\"}' -nographic";

fn busybox_facts() -> RunningFacts {
    RunningFacts {
        ram_bytes: ByteCount(262_136 << 10),
        agent_qmp: Some("/run/agent/qmp.sock".into()),
        ..facts()
    }
}

fn q35_facts() -> RunningFacts {
    RunningFacts {
        machine_type: "pc-q35-7.2".into(),
        ram_block: BlockName::new(b"ram0").unwrap(),
        ram_bytes: ByteCount(4 << 30),
        ..facts()
    }
}

#[test]
fn busybox_guest() {
    let rebuilt = arrive(BUSYBOX, &busybox_facts(), &[]).unwrap();
    let expected = "-no-user-config \
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
        -machine pc-i440fx-7.2,memory-backend=pc.ram \
        -object memory-backend-memfd,id=pc.ram,size=268427264,share=on,x-use-canonical-path-for-ramblock-id=off \
        -accel tcg -m 262136k -smp 2 -display none -serial file:/var/log/sterna/web/a.log \
        -kernel /boot/vmlinuz -initrd /x/guest.img -append 'console=ttyS0 quiet' -nodefaults -vga std \
        -netdev tap,id=n0,ifname=tap0,script=no,downscript=no \
        -device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01 \
        -drive file=/data/disks/disk.raw,if=virtio,format=raw,cache=none,file.locking=on \
        -qmp unix:/run/sterna/vms/web/q.sock,server=on,wait=off \
        -S -incoming defer -qmp unix:/run/sterna/vms/web/qmp.sock,server=on,wait=off";
    assert_eq!(rebuilt.argv, words(expected));
    assert_eq!(rebuilt.program, "qemu-system-x86_64");
    assert_eq!(rebuilt.program_path, None);
    assert_eq!(rebuilt.serial.as_deref(), Some("/var/log/sterna/web/a.log"));
    assert_eq!(rebuilt.qmp, "/run/sterna/vms/web/qmp.sock");
    let [block] = rebuilt.shared_blocks.as_slice() else { panic!("{:?}", rebuilt.shared_blocks) };
    assert_eq!((block.name.as_str(), block.bytes), ("pc.ram", ByteCount(262_136 << 10)));
    let files: Vec<_> = rebuilt
        .inputs
        .iter()
        .map(|need| (need.path.as_str(), need.access, need.kind, need.must_exist))
        .collect();
    assert_eq!(
        files,
        [
            ("/boot/vmlinuz", Access::Read, FileKind::Boot, true),
            ("/x/guest.img", Access::Read, FileKind::Boot, true),
            ("/data/disks/disk.raw", Access::ReadWrite, FileKind::Disk, false),
        ]
    );
    assert_eq!(rebuilt.inputs[2].source_path, "/srv/vm/disks/disk.raw");
    assert_eq!(rebuilt.inputs[2].format.as_deref(), Some("raw"));
    let relocated: Vec<_> = rebuilt.relocated.iter().map(|one| one.source.as_str()).collect();
    assert_eq!(relocated, ["/tmp/a.log", "/tmp/q.sock"]);
}

#[test]
fn q35_with_firmware_nodes_and_a_dimm() {
    let rebuilt = arrive(Q35, &q35_facts(), &[]).unwrap();
    let argv = rebuilt.argv.join(" ");
    for part in [
        "-machine pc-q35-7.2,accel=kvm,smm=on,kernel-irqchip=split -cpu",
        "-object memory-backend-memfd,id=ram0,size=2G,share=on,x-use-canonical-path-for-ramblock-id=off",
        "-object memory-backend-memfd,id=ram1,size=2G,share=on",
        "-object memory-backend-memfd,id=dimm,size=1G,share=on",
        r#"-blockdev {"backing":null,"driver":"qcow2","file":"f0","node-name":"hd0"}"#,
        "-nographic -serial file:/var/log/sterna/web/serial.log",
    ] {
        assert!(argv.contains(part), "{part}\n{argv}");
    }
    assert!(
        !argv.contains("hugepages") && !argv.contains("host-nodes") && !argv.contains("-display")
    );
    let blocks: Vec<_> = rebuilt
        .shared_blocks
        .iter()
        .map(|block| (block.name.as_str(), block.bytes.0 >> 30))
        .collect();
    assert_eq!(blocks, [("ram0", 2), ("ram1", 2), ("dimm", 1)]);
    let access: Vec<_> =
        rebuilt.inputs.iter().map(|need| (need.path.as_str(), need.access)).collect();
    assert_eq!(
        access,
        [
            ("/usr/share/OVMF/OVMF_CODE.fd", Access::Read),
            ("/srv/vars.fd", Access::ReadWrite),
            ("/srv/a.qcow2", Access::ReadWrite),
        ]
    );
    assert!(rebuilt.notes.iter().any(|note| note.contains("host-nodes")));
    assert!(described(Q35, &q35_facts()).cpu_host());
}

const PROXMOX: &str = "-id 100 -name web,debug-threads=on -no-shutdown \
    -chardev socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off -mon chardev=qmp,mode=control \
    -chardev socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5 -mon chardev=qmp-event,mode=control \
    -pidfile /var/run/qemu-server/100.pid -daemonize -smbios type=1,uuid=7d1a1c39-6d5c-4f2b-8a3e-0b7f2f4bb001 \
    -smp 2,sockets=1,cores=2,maxcpus=2 -nodefaults -boot menu=on,strict=on,reboot-timeout=1000,splash=/usr/share/qemu-server/bootsplash.jpg \
    -vnc unix:/var/run/qemu-server/100.vnc,password=on -cpu kvm64,enforce,+kvm_pv_eoi,+lahf_lm,+sep -m 256 \
    -device pci-bridge,id=pci.1,chassis_nr=1,bus=pci.0,addr=0x1e -device vmgenid,guid=0b7f2f4b-6d5c-4f2b-8a3e-0b7f2f4bb001 \
    -device piix3-usb-uhci,id=uhci,bus=pci.0,addr=0x1.0x2 -device usb-tablet,id=tablet,bus=uhci.0,port=1 \
    -device VGA,id=vga,bus=pci.0,addr=0x2 -device virtio-balloon-pci,id=balloon0,bus=pci.0,addr=0x3,free-page-reporting=on \
    -iscsi initiator-name=iqn.1993-08.org.debian:01:0b7f -drive if=none,id=drive-ide2,media=cdrom,aio=io_uring \
    -device ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2,bootindex=101 -device virtio-scsi-pci,id=scsihw0,bus=pci.0,addr=0x5 \
    -drive file=/srv/vm-100-disk-0.qcow2,if=none,id=drive-scsi0,format=qcow2,cache=none,aio=io_uring,detect-zeroes=on \
    -device scsi-hd,bus=scsihw0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,bootindex=100 \
    -netdev type=tap,id=net0,ifname=tap100i0,script=/usr/libexec/qemu-server/pve-bridge,downscript=/usr/libexec/qemu-server/pve-bridgedown,vhost=on \
    -device virtio-net-pci,mac=52:54:00:00:00:02,netdev=net0,bus=pci.0,addr=0x12,id=net0,rx_queue_size=1024 -machine type=pc+pve0";

const LIBVIRT: &str = "-name guest=web,debug-threads=on -S \
    -object '{\"qom-type\":\"secret\",\"id\":\"masterKey0\",\"format\":\"raw\",\"file\":\"/var/lib/libvirt/qemu/domain-1-web/master-key.aes\"}' \
    -machine pc-q35-7.2,usb=off,vmport=off,dump-guest-core=off,memory-backend=pc.ram -accel kvm -cpu host,migratable=on \
    -m 256 -object '{\"qom-type\":\"memory-backend-ram\",\"id\":\"pc.ram\",\"size\":268435456}' -overcommit mem-lock=off \
    -smp 2,sockets=2,cores=1,threads=1 -uuid 7d1a1c39-6d5c-4f2b-8a3e-0b7f2f4bb001 -no-user-config -nodefaults \
    -chardev socket,id=charmonitor,fd=32,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control \
    -rtc base=utc,driftfix=slew -global kvm-pit.lost_tick_policy=delay -no-hpet -no-shutdown -boot strict=on \
    -device '{\"driver\":\"pcie-root-port\",\"port\":16,\"chassis\":1,\"id\":\"pci.1\",\"bus\":\"pcie.0\",\"multifunction\":true,\"addr\":\"0x2\"}' \
    -device '{\"driver\":\"virtio-serial-pci\",\"id\":\"virtio-serial0\",\"bus\":\"pci.1\",\"addr\":\"0x0\"}' \
    -blockdev '{\"driver\":\"file\",\"filename\":\"/srv/web.qcow2\",\"node-name\":\"libvirt-1-storage\",\"auto-read-only\":true,\"discard\":\"unmap\"}' \
    -blockdev '{\"node-name\":\"libvirt-1-format\",\"read-only\":false,\"discard\":\"unmap\",\"driver\":\"qcow2\",\"file\":\"libvirt-1-storage\",\"backing\":null}' \
    -device '{\"driver\":\"ide-hd\",\"bus\":\"ide.0\",\"drive\":\"libvirt-1-format\",\"id\":\"sata0-0-0\",\"bootindex\":1}' \
    -netdev '{\"type\":\"tap\",\"fd\":\"33\",\"vhost\":true,\"vhostfd\":\"35\",\"id\":\"hostnet0\"}' \
    -chardev pty,id=charserial0 -device '{\"driver\":\"isa-serial\",\"chardev\":\"charserial0\",\"id\":\"serial0\",\"index\":0}' \
    -chardev socket,id=charchannel0,fd=31,server=on,wait=off \
    -device '{\"driver\":\"virtserialport\",\"bus\":\"virtio-serial0.0\",\"nr\":1,\"chardev\":\"charchannel0\",\"id\":\"channel0\",\"name\":\"org.qemu.guest_agent.0\"}' \
    -audiodev '{\"id\":\"audio1\",\"driver\":\"none\"}' -vnc 127.0.0.1:0,audiodev=audio1 \
    -object '{\"qom-type\":\"rng-random\",\"id\":\"objrng0\",\"filename\":\"/dev/urandom\"}' \
    -device '{\"driver\":\"virtio-rng-pci\",\"rng\":\"objrng0\",\"id\":\"rng0\",\"bus\":\"pcie.0\",\"addr\":\"0x3\"}' \
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny -msg timestamp=on";

#[test]
fn a_proxmox_guest_needs_its_bridge_script_replaced() {
    let facts = RunningFacts { machine_type: "pc-i440fx-7.2+pve0".into(), ..facts() };
    let refusals = arrive(PROXMOX, &facts, &[]).unwrap_err();
    let reasons: Vec<_> = refusals.iter().map(|refusal| refusal.reason.as_str()).collect();
    let [client, script, downscript] = reasons.as_slice() else { panic!("{reasons:#?}") };
    assert!(client.contains("qmeventd.sock"), "{client}");
    assert!(script.contains("script=") && downscript.contains("downscript="), "{reasons:?}");

    let plain = PROXMOX
        .replace("script=/usr/libexec/qemu-server/pve-bridge,", "script=no,")
        .replace("downscript=/usr/libexec/qemu-server/pve-bridgedown", "downscript=no")
        .replace("-chardev socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5 -mon chardev=qmp-event,mode=control", "");
    let rebuilt = arrive(&plain, &facts, &[]).unwrap();
    let argv = rebuilt.argv.join(" ");
    assert!(argv.contains("-vnc unix:/run/sterna/vms/web/100.vnc,password=on"), "{argv}");
    assert!(
        argv.contains("-chardev socket,id=qmp,path=/run/sterna/vms/web/100.qmp,server=on,wait=off"),
        "{argv}"
    );
    assert!(argv.contains("-machine pc-i440fx-7.2+pve0,memory-backend=pc.ram"), "{argv}");
    assert!(
        !argv.contains("-daemonize") && !argv.contains("-pidfile") && !argv.contains("-id 100")
    );
    fixpoint(&rebuilt, &facts);
}

#[test]
fn a_libvirt_guest_keeps_all_but_its_descriptors() {
    let facts = RunningFacts { machine_type: "pc-q35-7.2".into(), ..facts() };
    let refusals = arrive(LIBVIRT, &facts, &[]).unwrap_err();
    let reasons: Vec<_> = refusals.iter().map(|refusal| refusal.reason.as_str()).collect();
    let [fd, vhostfd, vnc] = reasons.as_slice() else { panic!("{reasons:#?}") };
    assert!(fd.contains("fd=") && vhostfd.contains("vhostfd=") && vnc.contains("127.0.0.1:0"));

    let plain = LIBVIRT
        .replace(
            "\"fd\":\"33\",\"vhost\":true,\"vhostfd\":\"35\"",
            "\"ifname\":\"vnet0\",\"script\":\"no\",\"downscript\":\"no\",\"vhost\":true",
        )
        .replace("-vnc 127.0.0.1:0,audiodev=audio1", "-display none");
    let rebuilt = arrive(&plain, &facts, &[]).unwrap();
    let argv = rebuilt.argv.join(" ");
    for part in [
        "-chardev socket,id=charmonitor,server=on,wait=off,path=/run/sterna/vms/web/charmonitor.sock",
        r#"-object {"id":"pc.ram","qom-type":"memory-backend-memfd","share":true,"size":268435456,"x-use-canonical-path-for-ramblock-id":false}"#,
        r#""multifunction":true,"port":16"#,
    ] {
        assert!(argv.contains(part), "{part}\n{argv}");
    }
    assert!(!argv.contains("secret") && !argv.contains("overcommit"), "{argv}");
    assert_eq!(rebuilt.shared_blocks[0].bytes, ByteCount(256 << 20));
    fixpoint(&rebuilt, &facts);
}

/// What was rebuilt, described and rebuilt once more, is the same.
fn fixpoint(first: &Rebuilt, facts: &RunningFacts) {
    let facts = RunningFacts { agent_qmp: Some(first.qmp.clone()), ..facts.clone() };
    let mut argv = vec![first.program.clone()];
    argv.extend(first.argv.iter().cloned());
    let description = Description::from_argv(&argv, &facts).unwrap();
    let again = rebuild(&description, &policy(&[]), &place()).unwrap();
    assert_eq!(again.argv, first.argv);
    assert_eq!(again.shared_blocks, first.shared_blocks);
    assert_eq!(again.serial, first.serial);
    assert_eq!(again.notes, [""; 0]);
}

#[test]
fn the_second_hop_changes_nothing() {
    fixpoint(&arrive(BUSYBOX, &busybox_facts(), &[]).unwrap(), &busybox_facts());
    fixpoint(&arrive(Q35, &q35_facts(), &[]).unwrap(), &q35_facts());
    let bare = arrive("", &facts(), &[]).unwrap();
    assert!(bare.argv.join(" ").contains("-m 268435456B -display none -S"));
    fixpoint(&bare, &facts());
}

#[test]
fn the_second_host_has_its_own_place() {
    let first = arrive(BUSYBOX, &busybox_facts(), &[]).unwrap();
    let facts = RunningFacts { agent_qmp: Some(first.qmp.clone()), ..busybox_facts() };
    let mut argv = vec![first.program];
    argv.extend(first.argv);
    let description = Description::from_argv(&argv, &facts).unwrap();
    let place = Place::new("/run/b", "/out/b").unwrap();
    let second = rebuild(&description, &policy(&[]), &place).unwrap();
    let argv = second.argv.join(" ");
    assert!(!argv.contains("/run/sterna") && !argv.contains("/var/log"), "{argv}");
    assert_eq!(second.serial.as_deref(), Some("/out/b/a.log"));
    assert_eq!(argv.matches("-qmp ").count(), 2);
}

#[test]
fn a_description_survives_the_wire() {
    let description = described(Q35, &q35_facts());
    let text = serde_json::to_string(&description).unwrap();
    assert_eq!(serde_json::from_str::<Description>(&text).unwrap(), description);
    assert!(
        serde_json::from_str::<Description>(&text.replacen(
            "\"program\"",
            "\"root\":1,\"program\"",
            1
        ))
        .is_err()
    );
}

#[test]
fn short_forms_become_drives_with_formats() {
    let facts = RunningFacts {
        working_dir: Some("/srv/vm".into()),
        image_formats: vec![
            ("disks/a.img".into(), "qcow2".into()),
            ("/srv/vm/b,c.img".into(), "raw".into()),
        ],
        ..facts()
    };
    let line = "disks/a.img -hdb b,c.img -cdrom /srv/x.iso -pflash /srv/f.fd -drive file=disks/a.img,id=again";
    let rebuilt = arrive(line, &facts, &[]).unwrap();
    let argv = rebuilt.argv.join(" ");
    for part in [
        "-drive file=/data/disks/a.img,index=0,media=disk,format=qcow2",
        "-drive file=/srv/vm/b,,c.img,index=1,media=disk,format=raw",
        "-drive file=/srv/x.iso,index=2,media=cdrom,format=raw",
        "-drive file=/srv/f.fd,if=pflash,format=raw",
        "-drive file=/data/disks/a.img,id=again,format=qcow2",
    ] {
        assert!(argv.contains(part), "{part}\n{argv}");
    }
}

#[test]
fn ports_without_a_terminal_go_to_files() {
    for (line, port, source) in [
        ("-serial stdio", "-serial file:/var/log/sterna/web/serial.log", "stdio"),
        ("-serial mon:stdio", "-serial file:/var/log/sterna/web/serial.log", "stdio"),
        ("-nographic", "-nographic -serial file:/var/log/sterna/web/serial.log", "stdio"),
        (
            "-monitor stdio",
            "-monitor unix:/run/sterna/vms/web/monitor.sock,server=on,wait=off",
            "stdio",
        ),
        (
            "-monitor unix:/tmp/m,server,nowait",
            "-monitor unix:/run/sterna/vms/web/m,server=on,wait=off",
            "/tmp/m",
        ),
        ("-debugcon file:/tmp/d.txt", "-debugcon file:/var/log/sterna/web/d.txt", "/tmp/d.txt"),
        ("-D /tmp/q.log", "-D /var/log/sterna/web/q.log", "/tmp/q.log"),
        (
            "-chardev stdio,id=s,signal=off",
            "-chardev file,id=s,path=/var/log/sterna/web/s.log",
            "stdio",
        ),
        ("-display vnc=unix:/tmp/v.sock", "-vnc unix:/run/sterna/vms/web/v.sock", "/tmp/v.sock"),
    ] {
        let rebuilt = arrive(line, &facts(), &[]).unwrap();
        let argv = rebuilt.argv.join(" ");
        assert!(argv.contains(port), "{port}\n{argv}");
        assert_eq!(rebuilt.relocated[0].source, source, "{line}");
        fixpoint(&rebuilt, &facts());
    }
}

#[test]
fn the_program_follows_a_mapping_only() {
    let policy = |from: &str, to: &str| {
        Policy::new(&["/".into()], &[(from.into(), to.into())], &[]).unwrap()
    };
    let description = described("", &facts());
    for (from, to, path) in [
        ("/usr/bin/qemu-system-x86_64", "/opt/wrapper", Some("/opt/wrapper")),
        ("/usr", "/opt/qemu-10", Some("/opt/qemu-10/bin/qemu-system-x86_64")),
        ("/usr/bin/qemu", "/opt", None),
        ("/srv", "/opt", None),
    ] {
        let rebuilt = rebuild(&description, &policy(from, to), &place()).unwrap();
        assert_eq!(rebuilt.program_path.as_deref(), path, "{from}");
    }
}

#[test]
fn accelerators_are_told() {
    for (line, names) in [
        ("", &["tcg"][..]),
        ("-enable-kvm", &["kvm"]),
        ("-machine q35,accel=kvm:tcg", &["kvm", "tcg"]),
        ("-accel tcg,thread=single", &["tcg"]),
    ] {
        assert_eq!(described(line, &facts()).accelerators(), names);
    }
}
