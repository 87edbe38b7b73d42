"""An independent reader of a captured stream: python3 read_stream.py FILE... prints the values that the tests expect.

It shares no code with the crate: it holds the whole stream, trusts it, and walks it by offset.
"""
import struct
import sys
import zlib


class Stream:
    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, form):
        (value,) = struct.unpack_from(">" + form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def take(self, length):
        self.at += length
        return self.data[self.at - length : self.at]

    def counted(self):
        return self.take(self.number("B"))


def read(data):
    stream, names = Stream(data), {}
    found = dict(machine="", commands=[], blocks=[], parts=[], pages=0, zero_pages=0, dropped=0, tail=b"")
    memory, block = {}, None
    assert stream.take(8) == b"QEVM\0\0\0\3"
    while True:
        start, kind = stream.at, stream.number("B")
        if kind == 4:
            found["tail"] = data[start:]
            return found, memory
        if kind == 0:
            assert found["tail"] and stream.at == len(data)
            return found, memory
        if kind == 7:
            found["machine"] = stream.take(stream.number("I")).decode()
        elif kind == 8:
            command = (stream.number("H"), stream.take(stream.number("H")))
            found["commands"].append(command)
            found["dropped"] += 5 if command == (3, b"") else 0
            if command[0] == 7:
                found["tail"] = tail_of(stream.take(int.from_bytes(command[1], "big")))
        else:
            section = stream.number("I")
            if kind == 1:
                names[section] = stream.counted()
                stream.take(8)
            is_dropped = True
            if names[section] != b"ram":
                bitmap(stream)
            elif found["tail"]:
                assert stream.number("Q") == 0x10
            else:
                block, is_dropped = ram(stream, found, memory, block), False
            assert stream.number("B") == 0x7E and stream.number("I") == section
            found["dropped"] += stream.at - start if is_dropped else 0


def tail_of(package):
    """What a package is as a tail. The last section's footer stands before RUN: there is no ping."""
    assert package[:5] == b"\x08\0\4\0\0" and package[-10] == 0x7E and package[-5:] == b"\x08\0\5\0\0"
    return package[5:-5] + b"\0" + b"\6\0\0\0\2{}"


def ram(stream, found, memory, block):
    pages = 0
    while True:
        word = stream.number("Q")
        flags, offset = word & 4095, word & ~4095
        if flags == 0x10:
            found["parts"].append(pages)
            return block
        if flags == 0x04:
            while offset:
                found["blocks"].append((stream.counted().decode(), stream.number("Q")))
                offset -= found["blocks"][-1][1]
            continue
        if not flags & 0x20:
            block = stream.counted().decode()
        pages += 1
        if flags & 0x02:
            assert stream.number("B") == 0
            memory[block, offset] = bytes(4096)
            found["zero_pages"] += 1
        else:
            assert flags & 0x08
            memory[block, offset] = stream.take(4096)
            found["pages"] += 1


def bitmap(stream):
    flags = 0
    while not flags & 0x01:
        flags = stream.number("B")
        if flags & 0x08:
            stream.counted()
        if flags & 0x04:
            stream.counted()
        if flags & 0x10:
            stream.take(5)
        elif flags & 0x40:
            stream.take(12)
            stream.take(0 if flags & 0x02 else stream.number("Q"))


def memory_sum(blocks, memory):
    first, total = {}, 0
    for name, length in blocks:
        first[name], total = total, total + length
    weigh = lambda place: 2 * ((first[place[0]] + place[1]) // 4096) + 1
    return sum(zlib.crc32(content) * weigh(place) for place, content in memory.items()) % 2**64


if __name__ == "__main__":
    for path in sys.argv[1:]:
        with open(path, "rb") as file:
            found, memory = read(file.read())
        parts, tail = found.pop("parts"), found.pop("tail")
        print(path, found, f"parts={len(parts)} distinct={len(memory)}", hex(memory_sum(found["blocks"], memory)))
        print(f"    tail_bytes={len(tail)} tail_crc={zlib.crc32(tail):#010x}")
