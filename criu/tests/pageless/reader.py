"""Reads a frozen tree's private memory: reader.py DROPPABLE PID... prints `own-pid address crc32` of every page that is there.

What the kernel may drop (MAP_DROPPABLE, where libc keeps random numbers) counts only if DROPPABLE is 1: CRIU writes it up to 4.1.
"""
import ctypes
import fcntl
import os
import struct
import sys
import zlib

PAGE = 4096
PAGEMAP_SCAN = 0xC0606610
FILE, PRESENT, SWAPPED, PFNZERO, GUARD = 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 8


def ranges(pid):
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    room = ctypes.create_string_buffer(24 * 4096)
    at, end = 0, 0x7FFFFFFFF000
    while at < end:
        scan = bytearray(struct.pack("12Q", 96, 0, at, end, 0, ctypes.addressof(room), 4096, 0,
                                     PFNZERO | FILE, PFNZERO | FILE, PRESENT | SWAPPED, PRESENT | GUARD))
        try:
            got = fcntl.ioctl(fd, PAGEMAP_SCAN, scan)
        except OSError:
            # Kernels before 6.15 do not tell guards.
            struct.pack_into("Q", scan, 88, PRESENT)
            got = fcntl.ioctl(fd, PAGEMAP_SCAN, scan)
        at = struct.unpack_from("Q", scan, 32)[0]
        for i in range(got):
            start, end_of_range, categories = struct.unpack_from("QQQ", room, i * 24)
            # A guard looks like a page in swap.
            if not categories & GUARD:
                yield start, end_of_range
    os.close(fd)


for pid in map(int, sys.argv[2:]):
    own = next(line for line in open(f"/proc/{pid}/status") if line.startswith("NSpid:")).split()[-1]
    private = []
    for line in open(f"/proc/{pid}/smaps"):
        words = line.split(None, 5)
        if line[0] in "0123456789abcdef":
            mapping = tuple(int(end, 16) for end in words[0].split("-"))
            is_private = words[1][3] == "p" and not (words[5:] and words[5].startswith(("[vvar", "[vsyscall")))
        elif words[0] == "VmFlags:" and is_private and (sys.argv[1] == "1" or " dp" not in line):
            private.append(mapping)
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    for start, end in ranges(pid):
        for low, high in private:
            for page in range(max(start, low), min(end, high), PAGE):
                print(own, page, zlib.crc32(os.pread(memory, PAGE, page)))
