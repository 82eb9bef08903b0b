"""Sends back whatever comes, over TCP and UDP, IPv4 and IPv6; with HOST PORT also over a connection of its own making."""
import selectors, socket, sys, time
PORT, CHUNK, MOST = 7007, 1 << 18, 1 << 22
chosen = selectors.DefaultSelector()
def watch(stream):
    stream.setblocking(False)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    chosen.register(stream, selectors.EVENT_READ, lambda mask, waiting=bytearray(): pump(stream, waiting))
def pump(stream, waiting):
    try:
        if len(waiting) < MOST:
            got = stream.recv(CHUNK)
            if not got: raise ConnectionError
            waiting += got
    except BlockingIOError: pass
    except OSError: chosen.unregister(stream); stream.close(); return
    try:
        while waiting: del waiting[:stream.send(waiting)]
    except BlockingIOError: pass
    except OSError: chosen.unregister(stream); stream.close(); return
    wanted = (selectors.EVENT_READ if len(waiting) < MOST else 0) | (selectors.EVENT_WRITE if waiting else 0)
    key = chosen.get_key(stream)
    if key.events != wanted: chosen.modify(stream, wanted, key.data)
def reply(datagrams):
    try:
        while True: datagrams.sendto(*datagrams.recvfrom(1 << 16))
    except BlockingIOError: pass
for family, any_address in (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"):
    listener = socket.socket(family, socket.SOCK_STREAM)
    datagrams = socket.socket(family, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for sock in listener, datagrams:
        if family == socket.AF_INET6: sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((any_address, PORT))
        sock.setblocking(False)
    listener.listen(200)
    chosen.register(listener, selectors.EVENT_READ, lambda mask, listener=listener: watch(listener.accept()[0]))
    chosen.register(datagrams, selectors.EVENT_READ, lambda mask, datagrams=datagrams: reply(datagrams))
def dial():
    """A connection out in the place of one that is gone."""
    while len(sys.argv) > 1 and dialled.fileno() < 0:
        try: return socket.create_connection((sys.argv[1], int(sys.argv[2])))
        except OSError: time.sleep(0.05)
    return None
dialled = socket.socket(); dialled.close()
while True:
    made = dial()
    if made: dialled = made; watch(made)
    for key, mask in chosen.select(): key.data(mask)
