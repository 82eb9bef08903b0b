"""A tree with memory of all kinds: workload.py MIB plain|tree|guarded|user. Says `ready` in its name when it is all there."""
import ctypes
import mmap
import os
import random
import sys
import threading
import time

PAGE = 4096
libc = ctypes.CDLL(None, use_errno=True)


def fill(memory, pages, seed):
    noise = random.Random(seed)
    for page in pages:
        memory[page * PAGE:page * PAGE + 16] = noise.randbytes(16)


def anonymous(pages, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS):
    return mmap.mmap(-1, pages * PAGE, flags=flags)


def address(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def protect(memory, first, pages, prot):
    if libc.mprotect(ctypes.c_void_p(address(memory) + first * PAGE), ctypes.c_size_t(pages * PAGE), prot):
        raise OSError(ctypes.get_errno(), "mprotect")


def nap():
    while True:
        time.sleep(1)


mib, kind = int(sys.argv[1]), sys.argv[2]
if kind == "user":
    os.setgid(1000)
    os.setuid(1000)
    libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
big = anonymous(mib * 256)
# Small pages: it is these that cost something.
big.madvise(mmap.MADV_NOHUGEPAGE)
fill(big, range(mib * 256), 1)
keep = [big]
if kind in ("tree", "guarded"):
    # holes, a part that cannot be read, one that can only be written
    holes = anonymous(1024)
    fill(holes, range(0, 1024, 3), 2)
    protect(holes, 512, 100, 0)
    protect(holes, 700, 100, 2)
    # shared memory without and with a name
    shared = anonymous(512, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    fill(shared, range(0, 400), 3)
    memfd = os.memfd_create("godwit-test")
    os.ftruncate(memfd, 256 * PAGE)
    named = mmap.mmap(memfd, 256 * PAGE)
    fill(named, range(0, 256, 2), 4)
    # guard pages, where the kernel has them (6.13; MADV_GUARD_INSTALL)
    guarded = anonymous(64)
    fill(guarded, range(0, 32), 8)
    if kind == "guarded":
        libc.madvise(ctypes.c_void_p(address(guarded) + 40 * PAGE), ctypes.c_size_t(8 * PAGE), 102)
    # pages of a file that were written to, and others that were not
    file = os.open("/usr/bin/perl" if os.path.exists("/usr/bin/perl") else sys.executable, os.O_RDONLY)
    private = mmap.mmap(file, 64 * PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(file)
    fill(private, range(0, 64, 5), 5)
    sum(private[page * PAGE] for page in range(64))
    # a page of zeroes that is only read
    zeroes = anonymous(64)
    sum(zeroes[page * PAGE] for page in range(64))
    keep += [holes, shared, named, guarded, private, zeroes]
    for _ in range(3):
        threading.Thread(target=nap, daemon=True).start()
    for child in range(2):
        if os.fork() == 0:
            # shares most of its parent's memory
            fill(big, range(child, mib * 256, 7), 6 + child)
            if child == 0:
                threading.Thread(target=nap, daemon=True).start()
            open("/proc/self/comm", "w").write("ready")
            nap()
    time.sleep(0.1)
open("/proc/self/comm", "w").write("ready")
nap()
