# shellcheck shell=bash disable=SC2154,SC2034
# A redis with a client on a third host, as what is moved. Sourced by `bench`.

redis_address=10.77.0.100
probe_socket=/run/bench-probe.sock

# asks the running probe: gap, status or stop
ask_probe() { in_host client socat -t 20 - "UNIX-CONNECT:$probe_socket" <<< "$1"; }

# gives the redis SIZE MiB of values that do not compress
fill_redis() { # fill_redis SIZE
    in_host src sh -c "python3 - $1 | redis-cli -h $redis_address --pipe > /dev/null" <<'E2'
import os, sys
VALUE = 4000  # with its header one allocation of 4 KiB; key and entry take about 80 bytes more
for n in range(int(sys.argv[1]) * 1024 * 1024 // (4096 + 80)):
    key = b"fill:%d" % n
    sys.stdout.buffer.write(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, VALUE, os.urandom(VALUE)))
E2
}

# a redis with SIZE MiB of values that do not compress, and a client that writes to it
begin_redis() { # begin_redis SIZE LOAD
    in_host src testbed-container create "$container" "$redis_address" > /dev/null || return 1
    fill_redis "$1" || return 1
    # redis rewrites its append-only file by itself once it has grown enough; done now, it does not happen in a move
    # shellcheck disable=SC2016 # the host's shell expands it
    in_host src sh -c '
        rewriting() { redis-cli -h "$1" info persistence | grep -Eq "aof_rewrite_(in_progress|scheduled):1"; }
        while rewriting "$1"; do sleep 0.1; done
        redis-cli -h "$1" bgrewriteaof > /dev/null
        sleep 0.2
        while rewriting "$1"; do sleep 0.1; done' sh "$redis_address" || return 1
    in_host client sh -c "rm -f $probe_socket*"
    in_host client timeout --kill-after=10 "${probe_seconds:-900}" godwit --quiet --json probe "redis://$redis_address:6379" \
        --rate 1000/s --control $probe_socket --ready-file $probe_socket.ready --drain-timeout 60s \
        < /dev/null > "$work/probe.json" 2> "$work/probe.err" &
    probe=$!
    in_host client timeout 30 sh -c "until [ -e $probe_socket.ready ]; do sleep 0.1; done" && sleep 1
}

# the network of the container is made at the destination beforehand, and joined to the link once the container is there;
# its append-only file grows until it stands still: files written since the copy follow with the images
before_stock_redis() {
    in_host dst sh -c "
        ip netns add $container
        ip link add v-$container type veth peer name eth0 address 02:42:0a:4d:00:64 netns $container
        ip -n $container link set lo up
        ip -n $container addr add $redis_address/24 dev eth0
        ip -n $container link set eth0 up" || return 1
    printf '%s\n' '#!/bin/bash' "ip link del v-$container; mkdir /run/bench-images/data; cd /srv/$container-data" \
        'find . -type f -newer /run/bench-copying -exec cp -a --parents {} /run/bench-images/data ";"' > "$work/after-dump"
    printf '%s\n' '#!/bin/bash' "cp -a /run/bench-images/data/. /srv/$container-data/" > "$work/after-transfer"
    # a frame of the container tells the switches where it is now
    printf '%s\n' '#!/bin/bash' "ip link set v-$container master br0 up; ip netns exec $container ping -c 1 -W 1 10.77.0.3 > /dev/null &" > "$work/after-restore"
    chmod +x "$work"/after-*
    local step
    for step in dump transfer restore; do "$testbed" push "$work/after-$step" "/usr/local/bin/bench-after-$step"; done
    after_dump=bench-after-dump after_transfer=bench-after-transfer after_restore=bench-after-restore
}

note_begin_redis() { ask_probe gap > /dev/null; }

# prints the longest time that the client waited, milliseconds
note_end_redis() {
    local answer
    for _ in {1..100}; do
        answer=$(ask_probe status)
        [ "$(jq .open <<< "$answer")" = true ] || break
        sleep 0.1
    done
    ask_probe gap | jq '.max_gap_us / 100 | round / 10'
}

# reads every acknowledged write back
check_redis() {
    ask_probe stop > /dev/null
    wait "$probe" || true
    tail -n 1 "$work/probe.json" | jq -e '.writes.lost == 0 and .writes.unverified == 0 and .reconnects == 0' > /dev/null ||
        { tail -n 1 "$work/probe.json" | head -c 2000 >&2; return 1; }
}
