#!/usr/bin/python3
"""client.py: what `scripts/bench application` runs on the client's host; both end when the file STOP is there.

    client.py send ADDRESS RATE STOP    sends RATE SETs of 200 bytes a second over one connection, whether answers come
                                        or not; prints for each when it was due and when it was answered
    client.py count ADDRESS STOP        prints every 50 ms the time and how many commands redis has answered so far

Times are microseconds of CLOCK_REALTIME, which the hosts have in common.
"""

import os
import random
import select
import socket
import sys
import time

PORT = 6379
KEYS = 200_000
VALUE = b"x" * 200
# how often it is looked whether to stop, and how long the last answers may take
LOOK_SECONDS = 0.1
DRAIN_SECONDS = 5
COUNT_SECONDS = 0.05


def connect(address):
    """A connection that sends at once."""
    connection = socket.create_connection((address, PORT), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(None)
    return connection


def send(address, rate, stop):
    """An open loop in one thread: requests leave when they are due, answers are taken in between."""
    connection = connect(address)
    # time.time() may be set while this runs
    offset = time.time() - time.monotonic()
    answered, rest, sent = [], b"", 0
    begin = time.monotonic() + 0.1
    look, until = begin, None
    while until is None or (len(answered) < sent and time.monotonic() < until):
        due = begin + sent / rate if until is None else until
        wait = max(0.0, due - time.monotonic())
        if select.select([connection], [], [], wait)[0]:
            data = connection.recv(65536)
            if not data:
                sys.exit("the connection was closed")
            now = time.monotonic()
            # every answer is one line
            *lines, rest = (rest + data).split(b"\r\n")
            for line in lines:
                if line != b"+OK":
                    sys.exit(f"redis said {line!r}")
                answered.append(now)
        now = time.monotonic()
        if until is None and now >= due:
            key = b"key:%d" % random.randrange(KEYS)
            connection.sendall(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, len(VALUE), VALUE))
            sent += 1
        if until is None and now >= look:
            look = now + LOOK_SECONDS
            until = now + DRAIN_SECONDS if os.path.exists(stop) else None
    if len(answered) < sent:
        sys.exit(f"{sent - len(answered)} requests were not answered")
    for number, moment in enumerate(answered):
        print(round((begin + number / rate + offset) * 1e6), round((moment + offset) * 1e6))


def count(address, stop):
    """How many commands there were, by redis' own statistics."""
    connection = connect(address)
    while not os.path.exists(stop):
        connection.sendall(b"INFO stats\r\n")
        text = b""
        while b"total_commands_processed" not in text or not text.endswith(b"\r\n"):
            data = connection.recv(65536)
            if not data:
                sys.exit("the connection was closed")
            text += data
        commands = next(line for line in text.split(b"\r\n") if line.startswith(b"total_commands_processed:"))
        print(round(time.time() * 1e6), int(commands.split(b":")[1]))
        time.sleep(COUNT_SECONDS)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["send", address, rate, stop]:
            send(address, int(rate), stop)
        case ["count", address, stop]:
            count(address, stop)
        case _:
            sys.exit(__doc__)
