//! Every rule that refuses, by code and culprit; and what the configuration can allow.

use sterna_qemu_args::{inputs_here, inputs_of, program_of};

use crate::common::{arrive, described, facts, place, policy};

/// Line, code, what the reason names.
#[rustfmt::skip]
const REFUSED: &[(&str, &str, &str)] = &[
    // Devices.
    ("-device vfio-pci,host=01:00.0", "device-not-allowed", "vfio-pci"),
    ("-device vhost-user-blk-pci,chardev=c", "device-not-allowed", "another process"),
    ("-device vhost-vsock-pci,guest-cid=3", "device-not-allowed", "host's kernel"),
    ("-device ivshmem-plain,memdev=x", "device-not-allowed", "ivshmem-plain"),
    ("-device virtio-mem-pci", "device-not-allowed", "virtio-mem-pci"),
    ("-device virtio-pmem-pci", "device-not-allowed", "virtio-pmem-pci"),
    ("-device nvdimm", "device-not-allowed", "nvdimm"),
    ("-device sev-guest", "device-not-allowed", "sev-guest"),
    ("-device virtio-9p-pci,fsdev=f", "device-not-allowed", "host folder"),
    ("-device usb-host,hostbus=1", "device-not-allowed", "usb-host"),
    ("-device usb-redir,chardev=c", "device-not-allowed", "usb-redir"),
    ("-device usb-mtp,rootdir=/etc", "device-not-allowed", "usb-mtp"),
    ("-device virtio-input-host-pci,evdev=/dev/input/event0", "device-not-allowed", "virtio-input-host-pci"),
    ("-device virtio-gpu-gl-pci", "device-not-allowed", "graphics card"),
    ("-device virtio-vga-gl", "device-not-allowed", "graphics card"),
    ("-device scsi-block,drive=d", "device-not-allowed", "scsi-block"),
    ("-device scsi-generic,drive=d", "device-not-allowed", "scsi-generic"),
    ("-device tpm-tis,tpmdev=t", "device-not-allowed", "tpm-tis"),
    ("-device loader,file=/etc/shadow,addr=0", "device-not-allowed", "loader"),
    ("-device guest-loader,initrd=/etc/shadow,addr=0", "device-not-allowed", "guest-loader"),
    ("-device pci-testdev", "device-not-allowed", "pci-testdev"),
    ("-device ipmi-bmc-sim,id=b,sdrfile=/etc/shadow", "device-not-allowed", "ipmi-bmc-sim"),
    ("-device id=x", "device-not-allowed", "no list"),
    ("-device e1000,romfile=/etc/shadow", "path-not-allowed", "/etc/shadow"),
    ("-device e1000,romfile=../rom", "path-not-allowed", "../rom"),
    ("-device e1000,foo=/etc/shadow", "value-not-allowed", "foo="),
    ("-device virtio-serial-pci,fd=3", "value-not-allowed", "fd="),
    ("-device e1000,driver=loader,file=/etc/shadow", "device-not-allowed", "loader"),
    ("-device e1000,driver=vfio-pci,host=01:00.0", "device-not-allowed", "vfio-pci"),
    ("-device driver=loader,driver=e1000,file=/etc/shadow", "value-not-allowed", "file="),
    ("-device '{\"driver\":\"loader\",\"file\":\"/etc/shadow\",\"addr\":0}'", "device-not-allowed", "loader"),
    ("-device e1000,romfile=/proc/self/fd/3", "path-not-allowed", "/proc"),
    ("-device virtio-blk-pci,drive=/srv/a", "value-not-allowed", "drive="),
    ("-device virtserialport,chardev=c,path=/dev/ttyS0", "value-not-allowed", "path="),
    ("-global loader.file=/etc/shadow", "option-not-allowed", "loader"),
    ("-global driver=virtio-blk-pci,property=filename,value=x", "value-not-allowed", "filename"),
    ("-device help", "device-not-allowed", "help"),
    ("-device e1000,help", "argument-malformed", "help"),
    ("-global vfio-pci.sysfsdev=/sys/x", "option-not-allowed", "vfio-pci"),
    ("-global migration.send-configuration=off", "option-not-allowed", "migration"),
    ("-global PIIX4_PM./etc/shadow=1", "value-not-allowed", "/etc/shadow"),
    ("-global driver=PIIX4_PM,property=file:/,value=1", "value-not-allowed", "file:/"),
    ("-global e1000.romfile=/etc/shadow", "value-not-allowed", "romfile"),
    ("-global driver=e1000,property=romfile,value=x", "value-not-allowed", "romfile"),
    ("-global e1000", "argument-malformed", "e1000"),
    // Objects.
    ("-object secret,id=s,file=/etc/shadow -device e1000,serial=s", "object-not-allowed", "secret"),
    ("-object '{\"qom-type\":\"secret\",\"id\":\"s\",\"file\":\"/etc/shadow\"}' -device e1000,serial=s", "object-not-allowed", "secret"),
    ("-object rng-random,qom-type=secret,id=s,file=/etc/shadow -device e1000,serial=s", "object-not-allowed", "secret"),
    ("-object secret_keyring,id=s,serial=1 -device e1000,serial=s", "object-not-allowed", "secret_keyring"),
    ("-object secret,id=s,data=x -blockdev driver=qcow2,file=f,encrypt.key-secret=s", "object-not-allowed", "secret"),
    ("-object pr-manager-helper,id=p,path=/run/p.sock", "object-not-allowed", "pr-manager-helper"),
    ("-object qtest,id=q,chardev=c", "object-not-allowed", "qtest"),
    ("-object cryptodev-vhost-user,id=c,chardev=c", "object-not-allowed", "cryptodev-vhost-user"),
    ("-object iommufd,id=i,fd=3", "object-not-allowed", "iommufd"),
    ("-object tls-creds-x509,id=t,dir=/etc", "object-not-allowed", "tls-creds-x509"),
    ("-object filter-dump,id=f,netdev=n,file=/x", "object-not-allowed", "filter-dump"),
    ("-object can-host-socketcan,id=c,if=can0", "object-not-allowed", "can-host"),
    ("-object memory-backend-epc,id=e,size=1M", "object-not-allowed", "memory-backend-epc"),
    ("-object authz-list-file,id=a,filename=/etc/shadow", "object-not-allowed", "authz-list-file"),
    ("-object input-linux,id=i,evdev=/dev/input/event0", "object-not-allowed", "input-linux"),
    ("-object x-remote-object,id=i,fd=3", "object-not-allowed", "x-remote-object"),
    ("-object rng-random,id=r,filename=/etc/shadow", "value-not-allowed", "/etc/shadow"),
    ("-object iothread,id=r,filename=/x", "option-not-allowed", "filename"),
    ("-object memory-backend-file,id=m,size=1G,mem-path=/x,pmem=on", "value-not-allowed", "pmem"),
    ("-object memory-backend-file,id=m,size=1G,mem-path=/x,readonly=on", "value-not-allowed", "readonly"),
    ("-object memory-backend-ram,id=m,size=lots", "memory-not-shareable", "size"),
    ("-object memory-backend-ram,id=m,size=18446744073709551616", "memory-not-shareable", "size"),
    ("-machine pc,memory-backend=nowhere", "memory-not-shareable", "nowhere"),
    ("-numa node,memdev=nowhere", "memory-not-shareable", "nowhere"),
    ("-object memory-backend-ram,id=pc.ram,size=1G", "memory-not-shareable", "pc.ram"),
    ("-m 512", "memory-not-shareable", "512"),
    ("-m all", "argument-malformed", "all"),
    // Machines.
    ("-machine pc,kernel=/etc/shadow", "option-not-allowed", "kernel"),
    ("-machine pc,dtb=/etc/shadow", "option-not-allowed", "dtb"),
    ("-machine pc,firmware=/etc/shadow", "option-not-allowed", "firmware"),
    ("-machine pc,memory-encryption=sev0", "option-not-allowed", "memory-encryption"),
    ("-machine pc,accel=xen", "value-not-allowed", "xen"),
    ("-machine pc,frob=on", "option-not-allowed", "frob"),
    ("-accel qtest", "value-not-allowed", "qtest"),
    ("-accel kvm,device=/etc/x", "option-not-allowed", "device"),
    ("-cpu host,foo=/etc/x", "argument-malformed", "cpu"),
    ("-cpu help,help", "argument-malformed", "cpu"),
    ("-uuid x", "argument-malformed", "UUID"),
    ("-d cpu", "value-not-allowed", "cpu"),
    ("-D /tmp/%d.log", "value-not-allowed", "pattern"),
    ("-audiodev pa,id=a", "value-not-allowed", "pa"),
    ("-k ../../etc/shadow", "value-not-allowed", "shadow"),
    ("-vga xenfb", "value-not-allowed", "xenfb"),
    ("-usbdevice disk:/etc/shadow", "value-not-allowed", "disk"),
    // Disks.
    ("-drive file=/etc/shadow,format=raw", "path-not-allowed", "/etc/shadow"),
    ("-drive file=/srv/../etc/shadow,format=raw", "path-not-allowed", ".."),
    ("-drive file=/srv/a", "format-not-named", "/srv/a"),
    ("-hda /srv/a", "format-not-named", "/srv/a"),
    ("-drive file=/srv/a,format=vmdk", "block-driver-not-allowed", "vmdk"),
    ("-drive file=nbd:localhost:10809,format=raw", "path-not-allowed", "nbd"),
    ("-drive file=nbd://h/x,format=raw", "path-not-allowed", "nbd"),
    ("-drive file=http://h/x,format=raw", "path-not-allowed", "http"),
    ("-drive file=fat:/etc,format=raw", "path-not-allowed", "fat"),
    ("-drive 'file=json:{\"driver\":\"file\"},format=raw'", "path-not-allowed", "json"),
    ("-drive file.driver=nbd,file.host=h,format=raw", "block-driver-not-allowed", "nbd"),
    ("-drive file.filename=/etc/shadow,format=raw", "path-not-allowed", "/etc/shadow"),
    ("-drive file=/srv/a,format=qcow2,backing.file.filename=/etc/shadow", "path-not-allowed", "/etc/shadow"),
    ("-drive file=/srv/a,format=raw,if=xen", "value-not-allowed", "xen"),
    ("-drive file=/srv/a,format=raw,snapshot=on", "value-not-allowed", "snapshot"),
    ("-drive file=/srv/a,format=raw,frob=1", "option-not-allowed", "frob"),
    ("-drive file=/proc/self/mem,format=raw", "path-not-allowed", "/proc"),
    ("-drive file=/dev/fdset/3,format=raw", "path-not-allowed", "fdset"),
    ("-drive file=/dev/fd/3,format=raw", "path-not-allowed", "/dev/fd"),
    ("-drive file=/dev/mem,format=raw", "path-not-allowed", "/dev/mem"),
    ("-drive file=/srv/./../etc/shadow,format=raw", "path-not-allowed", ".."),
    ("-drive file=/srv/a,,b/../../etc/shadow,format=raw", "path-not-allowed", ".."),
    ("-drive file=/srv/a,format=raw,file=/etc/shadow", "path-not-allowed", "/etc/shadow"),
    ("-drive file=ssh://h/x,format=raw", "path-not-allowed", "ssh"),
    ("-drive file=rbd:pool/x,format=raw", "path-not-allowed", "rbd"),
    ("-drive file=iscsi://h/t/0,format=raw", "path-not-allowed", "iscsi"),
    ("-drive file=gluster+unix://h/x,format=raw", "path-not-allowed", "gluster"),
    ("-drive file=file:nbd:localhost:1,format=raw", "path-not-allowed", "nbd"),
    ("-drive file=blkdebug:/srv/c:/srv/a,format=raw", "path-not-allowed", "blkdebug"),
    ("-drive file=/srv/a,format=raw,file.driver=nbd", "block-driver-not-allowed", "nbd"),
    ("-drive file=/srv/a,format=qcow2,backing.driver=https", "block-driver-not-allowed", "https"),
    ("-drive file=/srv/a,format=qcow2,backing.file.driver=nbd", "block-driver-not-allowed", "nbd"),
    ("-drive file=/srv/a,format=qcow2,data-file.filename=/etc/shadow", "path-not-allowed", "/etc/shadow"),
    ("-drive file=/srv/a,format=qcow2,backing.backing.backing.file.filename=/etc/shadow", "path-not-allowed", "/etc/shadow"),
    ("-blockdev driver=raw,node-name=n,file.driver=file,file.filename=/proc/self/fd/3", "path-not-allowed", "/proc"),
    ("-blockdev '{\"driver\":\"raw\",\"file\":\"json:{}\"}'", "value-not-allowed", "file="),
    ("-blockdev '{\"driver\":\"qcow2\",\"file\":\"f\",\"backing\":\"/etc/shadow\"}'", "value-not-allowed", "backing="),
    ("-blockdev '{\"driver\":\"raw\",\"driver\":\"nbd\",\"file\":\"f\"}'", "block-driver-not-allowed", "nbd"),
    ("-blockdev driver=vvfat,dir=/etc,node-name=n", "block-driver-not-allowed", "vvfat"),
    ("-blockdev driver=nvme,device=0000:01:00.0,namespace=1", "block-driver-not-allowed", "nvme"),
    ("-blockdev driver=blkverify,test=a,raw=b", "block-driver-not-allowed", "blkverify"),
    ("-blockdev driver=nbd,server.type=unix,server.path=/x", "block-driver-not-allowed", "nbd"),
    ("-blockdev driver=host_device,filename=/dev/../etc/shadow", "path-not-allowed", ".."),
    ("-blockdev '{\"driver\":\"ssh\",\"path\":\"/x\",\"node-name\":\"n\"}'", "block-driver-not-allowed", "ssh"),
    ("-blockdev driver=raw,node-name=n,file.driver=blkdebug", "block-driver-not-allowed", "blkdebug"),
    ("-blockdev '{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}'", "path-not-allowed", "/etc/shadow"),
    ("-blockdev '{\"driver\":\"luks\",\"file\":\"x\"}'", "block-driver-not-allowed", "luks"),
    ("-blockdev driver=qcow2,file=f,encrypt.format=luks", "option-not-allowed", "encrypt"),
    ("-blockdev driver=file,filename=/srv/a,pr-manager=p", "option-not-allowed", "pr-manager"),
    ("-blockdev driver=file,filename=/srv/a,frob=p", "option-not-allowed", "frob"),
    ("-blockdev node-name=x", "argument-malformed", "driver"),
    ("-blockdev {", "argument-malformed", "JSON"),
    // Networks.
    ("-netdev tap,id=n", "netdev-not-allowed", "script=no is missing"),
    ("-netdev tap,id=n,ifname=t0,script=/bin/sh,downscript=no", "value-not-allowed", "script="),
    ("-netdev tap,id=n,ifname=t0,script=no,downscript=no,script=/bin/sh", "value-not-allowed", "/bin/sh"),
    ("-netdev tap,id=n,ifname=a/b,script=no,downscript=no", "netdev-not-allowed", "a/b"),
    ("-netdev tap,id=n,script=no,downscript=no", "netdev-not-allowed", "ifname"),
    ("-netdev tap,id=n,ifname=t0,script=no,downscript=no,br=br0", "option-not-allowed", "br="),
    ("-netdev tap,id=n,ifname=t0,script=no,downscript=no,helper=/bin/sh", "option-not-allowed", "helper="),
    ("-netdev tap,id=n,fd=3", "option-not-allowed", "fd="),
    ("-netdev tap,id=n,fds=3:4,vhostfds=5:6", "option-not-allowed", "fds="),
    ("-netdev '{\"type\":\"tap\",\"id\":\"n\",\"ifname\":\"t0\",\"script\":\"/bin/sh\",\"downscript\":\"no\"}'", "value-not-allowed", "/bin/sh"),
    ("-netdev tap,id=n,ifname=t0,script=no,downscript=no,type=bridge", "netdev-not-allowed", "bridge"),
    ("-netdev user,id=n,guestfwd=tcp:10.0.2.1:1-chardev:c", "option-not-allowed", "guestfwd"),
    ("-netdev user,id=n,tftp=/srv/../etc", "path-not-allowed", ".."),
    ("-netdev af-xdp,id=n,ifname=eth0", "netdev-not-allowed", "af-xdp"),
    ("-netdev dgram,id=n,local.type=unix,local.path=/x", "netdev-not-allowed", "dgram"),
    ("-net user,smb=/etc", "option-not-allowed", "smb"),
    ("-nic tap,ifname=t0,script=no,downscript=no,helper=/bin/sh", "option-not-allowed", "helper"),
    ("-netdev bridge,id=n,br=br0", "netdev-not-allowed", "bridge"),
    ("-netdev socket,id=n,listen=:1234", "netdev-not-allowed", "socket"),
    ("-netdev l2tpv3,id=n,src=a,dst=b,txsession=1", "netdev-not-allowed", "l2tpv3"),
    ("-netdev vde,id=n", "netdev-not-allowed", "vde"),
    ("-netdev vhost-user,id=n,chardev=c", "netdev-not-allowed", "vhost-user"),
    ("-netdev vhost-vdpa,id=n,vhostdev=/dev/x", "netdev-not-allowed", "vhost-vdpa"),
    ("-netdev stream,id=n,addr.type=inet", "netdev-not-allowed", "stream"),
    ("-netdev user,id=n,smb=/etc", "option-not-allowed", "smb"),
    ("-netdev user,id=n,guestfwd=tcp:10.0.2.1:1-cmd:sh", "option-not-allowed", "guestfwd"),
    ("-netdev user,id=n,tftp=/etc", "path-not-allowed", "/etc"),
    ("-netdev user,id=n,hostfwd=tcp::22-:22", "netdev-not-allowed", "hostfwd"),
    ("-netdev '{\"type\":\"user\",\"id\":\"n\",\"hostfwd\":[{\"str\":\"tcp::22-:22\"}]}'", "netdev-not-allowed", "hostfwd"),
    ("-nic bridge,br=br0", "netdev-not-allowed", "bridge"),
    ("-nic user,model=vfio-pci", "device-not-allowed", "vfio-pci"),
    ("-nic tap", "netdev-not-allowed", "script"),
    ("-net tap", "netdev-not-allowed", "script"),
    ("-net nic,model=vfio-pci", "device-not-allowed", "vfio-pci"),
    ("-net dump,file=/x", "netdev-not-allowed", "dump"),
    // Character devices, displays.
    ("-serial tcp::4444,server,nowait", "chardev-not-allowed", "tcp::4444"),
    ("-serial telnet::4444,server", "chardev-not-allowed", "telnet"),
    ("-serial udp::1", "chardev-not-allowed", "udp"),
    ("-serial pipe:/x", "chardev-not-allowed", "pipe"),
    ("-serial /dev/ttyS0", "chardev-not-allowed", "/dev/ttyS0"),
    ("-serial unix:/run/docker.sock", "chardev-not-allowed", "docker.sock"),
    ("-serial unix:/x,server,abstract=on", "value-not-allowed", "abstract"),
    ("-parallel /dev/parport0", "chardev-not-allowed", "parport0"),
    ("-monitor tcp::4444,server", "chardev-not-allowed", "tcp"),
    ("-qmp tcp::4444,server", "chardev-not-allowed", "tcp"),
    ("-monitor file:/x", "chardev-not-allowed", "file"),
    ("-chardev socket,id=c,host=h,port=1", "chardev-not-allowed", "socket"),
    ("-chardev socket,id=c,path=/x", "chardev-not-allowed", "/x"),
    ("-chardev socket,id=c,fd=3", "chardev-not-allowed", "fd"),
    ("-chardev socket,id=c,path=/x,server=on,tls-creds=t", "option-not-allowed", "tls-creds"),
    ("-chardev pipe,id=c,path=/x", "chardev-not-allowed", "pipe"),
    ("-chardev null,id=c,path=/etc/shadow", "chardev-not-allowed", "null"),
    ("-chardev file,id=c,path=/x,fd=3", "chardev-not-allowed", "fd=3"),
    ("-chardev pty,id=c,path=/x", "chardev-not-allowed", "pty"),
    ("-chardev udp,id=c,port=1", "chardev-not-allowed", "udp"),
    ("-chardev spicevmc,id=c,name=vdagent", "chardev-not-allowed", "spicevmc"),
    ("-chardev serial,id=c,path=/dev/ttyS0", "chardev-not-allowed", "serial"),
    ("-chardev file,id=c,path=/x,input-path=/etc/shadow", "option-not-allowed", "input-path"),
    ("-display gtk", "display-not-allowed", "gtk"),
    ("-display sdl,gl=on", "display-not-allowed", "sdl"),
    ("-display egl-headless,rendernode=/dev/dri/x", "display-not-allowed", "egl-headless"),
    ("-display dbus", "display-not-allowed", "dbus"),
    ("-vnc :0", "display-not-allowed", ":0"),
    ("-vnc 127.0.0.1:0", "display-not-allowed", "127.0.0.1:0"),
    ("-display vnc=0.0.0.0:1", "display-not-allowed", "0.0.0.0:1"),
    ("-vnc unix:/x,websocket=on", "option-not-allowed", "websocket"),
    ("-vnc unix:/x,tls-creds=t", "option-not-allowed", "tls-creds"),
    ("-spice port=5900", "option-not-allowed", "spice"),
    // Firmware, kernel.
    ("-kernel /etc/shadow", "path-not-allowed", "/etc/shadow"),
    ("-kernel vmlinuz", "path-not-allowed", "vmlinuz"),
    ("-initrd /boot/a,/etc/shadow", "value-not-allowed", "several"),
    ("-bios /etc/shadow", "path-not-allowed", "/etc/shadow"),
    ("-fw_cfg name=opt/x,file=/etc/shadow", "path-not-allowed", "/etc/shadow"),
    ("-kernel json:{}", "path-not-allowed", "json"),
    ("-initrd /proc/self/environ", "path-not-allowed", "/proc"),
    ("-bios ../../etc/shadow", "path-not-allowed", "shadow"),
    ("-fw_cfg opt/x,file=/proc/self/environ", "path-not-allowed", "/proc"),
    ("-fw_cfg name=opt/x,file=/srv/../etc/shadow", "path-not-allowed", ".."),
    ("-fw_cfg name=opt/x,string=a,file=/etc/shadow", "path-not-allowed", "/etc/shadow"),
    ("-fw_cfg name=opt/x,gen_id=g", "option-not-allowed", "gen_id"),
    ("-smbios file=/etc/shadow", "option-not-allowed", "file"),
    ("-smbios type=11,path=/etc/shadow", "option-not-allowed", "path"),
    ("-boot splash=/etc/x.jpg", "path-not-allowed", "splash"),
];

/// Options that are refused whatever their value.
#[rustfmt::skip]
const NEVER: &[&str] = &[
    "-L /usr/share/x", "-acpitable file=/x", "-add-fd fd=3,set=1", "-async-teardown", "-chroot /", "-runas root",
    "-run-with user=root", "-readconfig /etc/x", "-loadvm s", "-snapshot", "-gdb tcp::1", "-s", "-trace events=/x",
    "-plugin /x.so", "-set device.x.y=z", "-semihosting", "-semihosting-config enable=on", "-qtest unix:/x",
    "-tpmdev emulator,id=t", "-fsdev local,id=f,path=/", "-virtfs local,path=/,mount_tag=x", "-xen-domid 1",
    "-prom-env x=y", "-option-rom /x", "-icount 7", "-dtb /x", "-sd /x", "-mtdblock /x", "-compat deprecated-input=reject",
    "-dump-vmstate /x", "-preconfig", "-audio pa", "-soundhw hda", "-help", "-version",
];

/// Where raw bytes could be read as an image all the same, no format is certain, and the agent looks into the file.
#[test]
fn a_format_is_named_only_where_it_is_certain() {
    for (line, expected) in [
        ("-drive file=/srv/a,format=raw", Some("raw")),
        ("-drive file=/srv/a,format=qcow2", Some("qcow2")),
        ("-blockdev driver=raw,node-name=n,file.driver=file,file.filename=/srv/a", Some("raw")),
        ("-blockdev driver=file,node-name=n,filename=/srv/a", None),
        (
            "-blockdev driver=raw,node-name=n,file.driver=qcow2,file.file.driver=file,file.file.filename=/srv/a",
            None,
        ),
        (
            "-blockdev driver=raw,node-name=r,file.driver=file,file.filename=/srv/a -blockdev driver=qcow2,node-name=q,file=r",
            None,
        ),
        (
            "-drive file=/srv/a,format=raw,node-name=r -blockdev driver=qcow2,node-name=q,file=r",
            None,
        ),
    ] {
        let rebuilt = arrive(line, &facts(), &[]).expect(line);
        assert_eq!(rebuilt.inputs[0].format.as_deref(), expected, "{line}");
    }
}

#[test]
fn each_rule_refuses_by_name() {
    for (line, code, culprit) in REFUSED {
        let refusals = arrive(line, &facts(), &[]).expect_err(line);
        let named = refusals
            .iter()
            .any(|refusal| refusal.code == *code && refusal.reason.contains(culprit));
        assert!(named, "{line}: {refusals:#?}");
        assert!(refusals.iter().all(|refusal| !refusal.remedy.is_empty()));
    }
}

#[test]
fn options_that_never_travel() {
    for line in NEVER {
        let refusals = arrive(line, &facts(), &[]).expect_err(line);
        let name = line.split(' ').next().unwrap();
        assert_eq!(
            (refusals.len(), refusals[0].code.as_str()),
            (1, "option-not-allowed"),
            "{line}"
        );
        assert!(refusals[0].reason.starts_with(name), "{line}: {}", refusals[0].reason);
    }
}

#[test]
fn all_are_reported_together() {
    let line = "-device vfio-pci,host=1 -drive file=/etc/shadow,frob=1 -gdb tcp::1 -vnc :0";
    let refusals = arrive(line, &facts(), &[]).unwrap_err();
    let codes: Vec<_> = refusals.iter().map(|refusal| refusal.code.as_str()).collect();
    let expected = [
        "device-not-allowed",
        "format-not-named",
        "path-not-allowed",
        "option-not-allowed",
        "option-not-allowed",
        "display-not-allowed",
    ];
    assert_eq!(codes, expected);
}

#[test]
fn the_configuration_allows_more_as_the_source_wrote_it() {
    for (line, extra, kept) in [
        ("-gdb tcp::1234", "gdb", "-gdb tcp::1234"),
        ("-s", "s", "-s"),
        ("-vnc :0,password=on", "vnc", "-vnc :0,password=on"),
        (
            "-device ivshmem-doorbell,chardev=c",
            "device:ivshmem-doorbell",
            "-device ivshmem-doorbell,chardev=c",
        ),
        ("-object can-bus,id=c", "object:can-bus", "-object can-bus,id=c"),
        ("-netdev socket,id=n,listen=:1", "netdev:socket", "-netdev socket,id=n,listen=:1"),
        (
            "-netdev user,id=n,hostfwd=tcp::22-:22",
            "hostfwd",
            "-netdev user,id=n,hostfwd=tcp::22-:22",
        ),
        ("-chardev udp,id=c,port=1", "chardev:udp", "-chardev udp,id=c,port=1"),
        // What the rules can take over they still rebuild.
        ("-vnc unix:/tmp/v", "vnc", "-vnc unix:/run/sterna/vms/web/v"),
    ] {
        let rebuilt = arrive(line, &facts(), &[extra]).unwrap();
        assert!(rebuilt.argv.join(" ").contains(kept), "{line}: {:?}", rebuilt.argv);
    }
    assert!(arrive("-device vfio-pci,host=1", &facts(), &["device:ivshmem-plain"]).is_err());
    assert!(arrive("-netdev user,id=n,smb=/etc", &facts(), &["hostfwd"]).is_err());
}

/// A refused option does not hide what else there is to say of the files and of the program.
#[test]
fn files_and_program_are_known_beside_a_refusal() {
    let line =
        "-device vfio-pci,host=01:00.0 -drive file=/srv/vm/disks/a.raw,format=raw,if=none,id=a
                -drive file=/etc/b.raw,format=raw,if=none,id=b";
    assert!(arrive(line, &facts(), &[]).is_err());
    let description = described(line, &facts());
    let paths = |needs: Vec<sterna_qemu_args::FileNeed>| -> Vec<(String, String)> {
        needs.into_iter().map(|need| (need.source_path, need.path)).collect()
    };
    let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    let here = paths(inputs_here(&description, &policy(&[]), &place()));
    assert_eq!(here, [pair("/srv/vm/disks/a.raw", "/data/disks/a.raw")]);
    let there = paths(inputs_of(&description));
    let (a, b) = ("/srv/vm/disks/a.raw", "/etc/b.raw");
    assert_eq!(there, [pair(a, a), pair(b, b)], "at the source, as they are");
    let program = program_of(&description, &policy(&[]), &place()).unwrap();
    assert_eq!(program, ("qemu-system-x86_64".to_owned(), None));
}
