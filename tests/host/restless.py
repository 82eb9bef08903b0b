"""Never stops to change what it finds in /data, so that every round and the freeze come in the middle of it."""
import mmap, os, random, shutil
os.chdir("/data")
draw = random.Random(7)
big, mapped = os.open("big", os.O_RDWR), os.open("mapped", os.O_RDWR)
memory = mmap.mmap(mapped, 4 << 20)
count = 0
while True:
    count += 1
    # the same size, and mostly in the same second; every other time with its old time put back
    name = "same-%02d" % (count % 64)
    before = os.stat(name).st_mtime_ns
    with open(name, "r+b" if count % 3 else "wb") as file: file.write(b"%016d" % count)
    if count % 2: os.utime(name, ns=(before, before))
    os.pwrite(big, b"%08d" % count, draw.randrange((70 << 20) - 8))
    at = draw.randrange((4 << 20) - 8); memory[at:at + 8] = b"%08d" % count
    if count % 50 == 0:
        what = "many/%03d" % draw.randrange(300)
        if os.path.isdir(what): shutil.rmtree(what)
        elif os.path.lexists(what): os.remove(what)
        kind = draw.randrange(6)
        if kind == 0: os.mkdir(what); open(what + "/inside", "w").write(str(count))
        elif kind == 1: os.symlink(str(count), what)
        elif kind == 2: os.mkfifo(what)
        elif kind == 3: os.link("plain", what)
        elif kind == 4: open(what, "w").write(str(count))
    if count % 400 == 0:
        with open("grows", "ab") as file: file.write(b"%08d" % count * 500)
        with open("shrinks", "wb") as file: file.write(bytes(draw.randrange(200000)))
        if os.path.exists("moved-a"): os.rename("moved-a", "moved-b")
        else: open("moved-a", "w").write(str(count))
