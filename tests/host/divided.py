"""Two processes with mappings of which a part may not be written to for a while; a move comes in the meantime. When /data/go is there
all may be written again: each must be one mapping then, since mremap(2) takes one only. (From Linux 6.17 on it takes several, but none
that has a userfaultfd.) Says how that went."""
import ctypes, os, time

PAGE, PAGES = 4096, 200
NONE, READ, WRITE, PRIVATE, FIXED, ANONYMOUS, MAYMOVE, TO = 0, 1, 2, 0x02, 0x10, 0x20, 1, 2
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_size_t
word = ctypes.c_size_t


def protect(part, access):
    assert libc.mprotect(word(part[0]), word(part[1] * PAGE), access) == 0


def map(file=None):
    """With a page on either side that nobody may use: no other mapping is beside it."""
    room = libc.mmap(word(0), word((PAGES + 2) * PAGE), NONE, PRIVATE | ANONYMOUS, -1, word(0))
    protect((room + PAGE, PAGES), READ | WRITE)
    if file is not None:
        libc.mmap(word(room + PAGE), word(PAGES * PAGE), READ | WRITE, PRIVATE | FIXED, file, word(0))
    return room + PAGE


def content(place, page):
    return b"%s has %d of %d, " % (me.encode(), page, place) * 100


# first page and number of those in the middle: few, many, one at the beginning, all but the last
with open("/data/file", "wb") as file:
    file.write(bytes(PAGES * PAGE))
file = os.open("/data/file", os.O_RDWR)
whole = [map() for _ in range(4)] + [map(file)]
parts = [(start + first * PAGE, count) for start, (first, count) in zip(whole, [(90, 3), (50, 100), (0, 1), (0, 199), (90, 20)])]
me = "child" if os.fork() == 0 else "parent"
for place, start in enumerate(whole):
    for page in range(PAGES):
        ctypes.memmove(start + page * PAGE, content(place, page), len(content(place, page)))
for part in parts:
    protect(part, READ)
open(f"/data/ready.{me}", "w").close()
while not os.path.exists("/data/go"):
    time.sleep(0.02)
said = []
for place, (start, part) in enumerate(zip(whole, parts)):
    protect(part, READ | WRITE)
    ends = f"{start:x}-{start + PAGES * PAGE:x} "
    if not any(line.startswith(ends) for line in open("/proc/self/maps")):
        said.append(f"{place}: in parts")
    room = map()
    moved = libc.mremap(word(start), word(PAGES * PAGE), word(PAGES * PAGE), MAYMOVE | TO, word(room))
    if moved != room:
        said.append(f"{place}: {os.strerror(ctypes.get_errno())}")
        continue
    for page in range(PAGES):
        wanted = content(place, page)
        if ctypes.string_at(moved + page * PAGE, len(wanted)) != wanted:
            said.append(f"{place}: page {page} is another")
with open(f"/data/new.{me}", "w") as file:
    file.write(f"{me}: {said or 'whole'}\n")
os.rename(f"/data/new.{me}", f"/data/said.{me}")
time.sleep(3600)
