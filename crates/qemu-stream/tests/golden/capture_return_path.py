"""Captures what a QEMU says on the way back: python3 capture_return_path.py QEMU-7.2 NAME, in an empty folder.

The QEMU is fed i440fx-7.2.stream as a post-copy, with pages absent, by a writer that shares no code with the crate. The
firmware runs and waits for its second page while the connection is cut (NAME-cut.bytes); the QEMU is asked for the pages
that it placed, resumed, and gets the rest (NAME-recovered.bytes). Both are the same from every QEMU and at every run.
"""
import os
import socket
import struct
import subprocess
import sys
import time

from capture import Qmp, write_firmware
from read_stream import read

COUNTERS = [0x10, 0x11, 0x12]  # pages that the firmware touches, in its order
OTHERS = list(range(0x14, 0x60, 2))  # absent too; the last eight come before the cut
SECTION_PART, SECTION_END, END_OF_FILE = b"\2", b"\3", b"\0"


def command(number, data=b""):
    return b"\x08" + struct.pack(">HH", number, len(data)) + data


class Feed:
    def __init__(self, path):
        with open(path, "rb") as file:
            data = file.read()
        self.found, self.memory = read(data)
        ram = data.index(b"\3ram") - 5
        self.id = data[ram + 1 : ram + 5]
        self.close = struct.pack(">QB", 0x10, 0x7E) + self.id
        self.head, self.list = data[:ram], data[ram : data.index(self.close) + len(self.close)]
        end = self.found["tail"].rindex(b"\x7e", 0, self.found["tail"].rindex(b'\6\0\0'))
        self.devices = self.found["tail"][: end + 5]

    def part(self, block, pages):
        out = SECTION_PART + self.id
        for page in pages:
            offset = page * 4096 | 0x08
            out += struct.pack(">QB", offset, len(block)) + block.encode() + self.memory[block, page * 4096]
        return out + self.close

    def package(self):
        inside = command(4) + self.devices + command(2, b"\0\0\0\3") + command(5)
        return command(7, struct.pack(">I", len(inside))) + inside


def receive(connection, length):
    data = b""
    while len(data) < length:
        data += connection.recv(length - len(data)) or sys.exit(f"{len(data)} bytes, then the end")
    return data


def feed_until_cut(feed, connection, memory, qmp):
    ping = command(2, b"\0\0\0\1")
    connection.sendall(feed.head + command(1) + command(3, struct.pack(">QQ", 4096, 4096)) + ping + feed.list)
    said = receive(connection, 8)
    absent = COUNTERS + OTHERS
    for (block, offset), content in feed.memory.items():
        if block == "pc.ram" and offset // 4096 not in absent:
            os.pwrite(memory, content, offset)
    for block, length in feed.found["blocks"]:
        if block != "pc.ram":
            connection.sendall(feed.part(block, range(length // 4096)))
    for at in range(0, len(absent), 12):
        pairs = b"".join(struct.pack(">QQ", page * 4096, 4096) for page in absent[at : at + 12])
        connection.sendall(command(6, b"\0\6pc.ram\0" + pairs))
    connection.sendall(feed.package())
    said += receive(connection, 8)
    qmp("cont")
    said += receive(connection, 23)
    connection.sendall(feed.part("pc.ram", COUNTERS[:1] + OTHERS[-8:]))
    said += receive(connection, 16)
    time.sleep(0.5)
    connection.shutdown(socket.SHUT_RDWR)
    return said


def feed_recovered(feed, connection):
    said = b""
    for block, length in feed.found["blocks"]:
        connection.sendall(command(10, bytes([len(block)]) + block.encode()))
        bitmap = -(-length // 4096 // 64) * 8
        said += receive(connection, 4 + 1 + len(block) + 8 + bitmap + 8)
    connection.sendall(command(9))
    said += receive(connection, 8 + 23)
    connection.sendall(feed.part("pc.ram", COUNTERS[1:2]))
    said += receive(connection, 16)
    end = SECTION_END + feed.id + feed.close + END_OF_FILE
    connection.sendall(feed.part("pc.ram", COUNTERS[2:] + OTHERS[:-8]) + end)
    return said + receive(connection, 8)


def connect(path):
    connection = socket.socket(socket.AF_UNIX)
    while connection.connect_ex(path):
        time.sleep(0.05)
    return connection


def main(program, name):
    feed = Feed(os.path.join(os.path.dirname(os.path.abspath(__file__)), "i440fx-7.2.stream"))
    write_firmware("firmware.bin")
    shared = f"/dev/shm/{os.getpid()}.ram"
    backend = f"memory-backend-file,id=pc.ram,size=2040k,mem-path={shared},share=on"
    arguments = [program, "-accel", "tcg", "-S", "-M", "pc-i440fx-7.2,memory-backend=pc.ram", "-m", "2040k", "-vga", "none"]
    arguments += ["-object", backend, "-display", "none", "-nodefaults", "-bios", "firmware.bin", "-incoming", "defer"]
    qemu = subprocess.Popen([*arguments, "-qmp", f"unix:{name}.qmp,server=on,wait=off"])
    try:
        qmp = Qmp(f"{name}.qmp")
        memory = os.open(shared, os.O_RDWR)
        os.unlink(shared)
        qmp("migrate-set-capabilities", capabilities=[{"capability": "postcopy-ram", "state": True}])
        qmp("migrate-incoming", uri=f"unix:{name}.first")
        with open(f"{name}-cut.bytes", "wb") as file:
            file.write(feed_until_cut(feed, connect(f"{name}.first"), memory, qmp))
        while qmp("query-migrate")["status"] != "postcopy-paused":
            time.sleep(0.05)
        qmp("migrate-recover", uri=f"unix:{name}.second")
        with open(f"{name}-recovered.bytes", "wb") as file:
            file.write(feed_recovered(feed, connect(f"{name}.second")))
        time.sleep(0.5)
        print(name, qmp("query-migrate")["status"], qmp("query-status")["status"])
    finally:
        qemu.kill()
        qemu.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
