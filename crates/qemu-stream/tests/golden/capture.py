"""Captures the golden streams: python3 capture.py QEMU-7.2 QEMU-10.0 [NAME...], in an empty folder.

Each QEMU is a program that can be started; names are of the streams to capture, all if none is given.

The guest has 2040 KiB and no BIOS: 64 KiB of firmware that count in three pages for ever. So a stream is small, and some
pages come twice. Contents differ from one capture to the next: the expected values come from read_stream.py.
"""
import json
import os
import socket
import subprocess
import sys
import threading
import time

MACHINES = [  # file, which QEMU, machine type, how to run it, further arguments
    ("i440fx-7.2", 0, "pc-i440fx-7.2", "plain", ["-vga", "none"]),
    ("q35-7.2-vga", 0, "pc-q35-7.2", "plain", ["-device", "VGA,vgamem_mb=1,romfile="]),
    ("i440fx-10.0", 1, "pc-i440fx-10.0", "plain", ["-vga", "none"]),
    ("q35-10.0", 1, "pc-q35-10.0", "plain", ["-vga", "none"]),
    ("i440fx-7.2-hold", 0, "pc-i440fx-7.2", "held", ["-vga", "none"]),
    ("i440fx-7.2-packaged", 0, "pc-i440fx-7.2", "packaged", ["-vga", "none"]),
    ("q35-10.0-packaged", 1, "pc-q35-10.0", "packaged", ["-vga", "none"]),
]
HELD_RATE = 20_000  # bytes in a second while a bitmap holds the source


def write_firmware(path):
    """cli; again: ax = 0x1000; next: ds = ax; inc word [0]; [2] = ax; ax += 0x100; until 0x1300; wait; jmp again"""
    code = bytes.fromhex("fa b80010 8ed8 ff060000 a30200 050001 3d0013 75ef b9ffff e2fe ebe5")
    image = bytearray(65536)
    image[0xE000 : 0xE000 + len(code)] = code
    image[0xFFF0:0xFFF5] = bytes.fromhex("ea 00e0 00f0")  # where the processor starts: jmp f000:e000
    with open(path, "wb") as file:
        file.write(image)


class Qmp:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        while self.socket.connect_ex(path):
            time.sleep(0.05)
        self.lines = self.socket.makefile("rb")
        self.lines.readline()
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        message = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            answer = json.loads(self.lines.readline())
            if "error" in answer:
                raise RuntimeError(answer["error"])
            if "return" in answer:
                return answer["return"]


def hold(qmp):
    """A bitmap on a null block node keeps QEMU in its iterations."""
    qmp("blockdev-add", driver="null-co", node_name="hold", size=1 << 40)
    qmp("block-dirty-bitmap-add", node="hold", name="h", granularity=65536)
    qmp("migrate-set-capabilities", capabilities=[{"capability": "dirty-bitmaps", "state": True}])
    bitmaps = [{"name": "h", "alias": "h"}]
    qmp("migrate-set-parameters", block_bitmap_mapping=[{"node-name": "hold", "alias": "hold", "bitmaps": bitmaps}])


def end_held(qmp):
    """What is left fits into the downtime now, so QEMU ends by itself."""
    qmp("migrate-set-parameters", max_bandwidth=1 << 40, downtime_limit=2_000_000)
    qmp("stop")


def end_packaged(qmp):
    """Post-copy of the bitmap only: QEMU ends at once, its device state in a package."""
    qmp("stop")
    qmp("migrate-start-postcopy")


END = {  # how a held source is made to end
    "held": end_held,
    "packaged": end_packaged,
}


def capture(name, program, machine, how, arguments):
    command = [program, "-accel", "tcg", "-M", machine, "-m", "2040k", "-display", "none", "-nodefaults"]
    command += ["-bios", "firmware.bin", "-qmp", f"unix:{name}.qmp,server=on,wait=off", *arguments]
    qemu = subprocess.Popen(command)
    try:
        qmp = Qmp(f"{name}.qmp")
        time.sleep(1)
        if how in END:
            hold(qmp)
        rate = HELD_RATE if how in END else 1 << 40
        qmp("migrate-set-parameters", max_bandwidth=rate, downtime_limit=1)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{name}.socket")
        listener.listen(1)
        qmp("migrate", uri=f"unix:{name}.socket")
        connection, _ = listener.accept()
        reader = threading.Thread(target=keep, args=(connection, f"{name}.stream"))
        reader.start()
        if how in END:
            time.sleep(4)
            END[how](qmp)
        reader.join(20)
        print(name, os.path.getsize(f"{name}.stream"), qmp("query-migrate")["status"])
    finally:
        qemu.kill()
        qemu.wait()


def keep(connection, path):
    with open(path, "wb") as file:
        while data := connection.recv(1 << 20):
            file.write(data)


if __name__ == "__main__":
    write_firmware("firmware.bin")
    for name, which, machine, how, arguments in MACHINES:
        if name in (sys.argv[3:] or [name]):
            capture(name, sys.argv[1 + which], machine, how, arguments)
