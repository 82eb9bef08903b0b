# shellcheck shell=bash disable=SC2154
# The two ways to move a container, and godwit-workload as what is in it. Sourced by `bench`.

# what runs in the hosts; their clocks are one, so that times of both can be compared
push_moves() {
    # stock, receiving side: the files that come, then the restore
    cat > "$work/receive" <<'E2'
#!/bin/bash
# receive NAME [OPTION…]: takes the images of container NAME from port 7900, restores it, prints when it ran, in ns
set -euo pipefail
name=$1
shift
images=/run/bench-images
install -d -m 700 $images
cd $images
touch /run/bench-listens
socat -u TCP-LISTEN:7900,reuseaddr,rcvbuf=4194304 STDOUT | tar -x
[ -z "${AFTER_TRANSFER:-}" ] || $AFTER_TRANSFER
runc restore -d --image-path $images --work-path $images --bundle "/srv/$name" "$@" "$name" < /dev/null > $images/out 2>&1 ||
    { cat $images/out; tail -n 5 $images/restore.log; exit 1; } >&2
[ -z "${AFTER_RESTORE:-}" ] || $AFTER_RESTORE
date +%s%N
E2
    # stock, sending side
    cat > "$work/send" <<'E2'
#!/bin/bash
# send NAME [OPTION…]: prints when it began, in ns, and how many bytes it sent
set -euo pipefail
name=$1
shift
images=/run/bench-images
install -d -m 700 $images
date +%s%N
runc checkpoint --image-path $images --work-path $images "$@" "$name" > $images/out 2>&1 ||
    { cat $images/out; tail -n 5 $images/dump.log; exit 1; } >&2
[ -z "${AFTER_DUMP:-}" ] || $AFTER_DUMP
cd $images
tar -c . | socat -u STDIN TCP:dst:7900,sndbuf=4194304
du -sb $images | cut -f1
E2
    chmod +x "$work"/{receive,send}
    "$testbed" push "$work/receive" /usr/local/bin/bench-receive
    "$testbed" push "$work/send" /usr/local/bin/bench-send
    # the first network namespace makes /run/netns a mount for good
    local host
    for host in src dst; do in_host "$host" sh -c 'ip netns add first && ip netns del first'; done
}

# removes what the run before left
clear_hosts() {
    local host
    for host in src dst; do
        in_host "$host" sh -c "
            testbed-container remove $container > /dev/null 2>&1
            for namespace in /run/netns/*; do ip netns del \${namespace##*/} 2> /dev/null; done
            for process in \$(pgrep -x socat); do kill \$process; done
            rm -rf /srv/* /var/lib/godwit/* /run/bench-* /tmp/*; true"
    done
}

# moves the container by CRIU and runc alone; prints the figures
move_stock() { # move_stock KIND
    local receiver sent began ended options=()
    [ "$1" != redis ] || options=(--tcp-established)
    in_host src sh -c "touch /run/bench-copying; rsync -a --numeric-ids /srv/$container /srv/$container-data dst:/srv/" || return 1
    "before_stock_$1" || return 1
    in_host dst env AFTER_TRANSFER="${after_transfer:-}" AFTER_RESTORE="${after_restore:-}" \
        timeout --kill-after=5 300 bench-receive "$container" "${options[@]}" > "$work/received" &
    receiver=$!
    in_host dst timeout 20 sh -c 'until [ -e /run/bench-listens ] && ss -Hltn "sport = :7900" | grep -q .; do sleep 0.05; done' ||
        { wait $receiver; return 1; }
    sent=$(in_host src env AFTER_DUMP="${after_dump:-}" \
        timeout --kill-after=5 300 bench-send "$container" "${options[@]}") || sent=''
    [ -n "$sent" ] || in_host dst pkill -x socat || true
    wait $receiver && [ -n "$sent" ] || return 1
    began=$(head -n 1 <<< "$sent") ended=$(cat "$work/received")
    jq -nc --argjson began "$began" --argjson ended "$ended" --argjson bytes "$(tail -n 1 <<< "$sent")" \
        '{downtime_ms: (($ended - $began) / 100000 | round / 10), frozen_ms: null, wire_bytes: $bytes}'
}

# moves the container by godwit; prints the figures
move_godwit() { # move_godwit KIND
    local options=(--on-timeout switchover)
    [ "$1" != redis ] || options+=(--tcp-established)
    in_host src timeout --kill-after=5 300 godwit --json migrate "runc:$container" ssh://dst "${options[@]}" \
        > "$work/summary" || { tail -n 2 "$work/summary" >&2; return 1; }
    jq -c 'select(.message_type == "summary") |
        {downtime_ms: (.downtime_us / 100 | round / 10), frozen_ms: (.rounds[-1].frozen_us / 100 | round / 10),
         wire_bytes, tracker, strategy, rounds: (.rounds | length), parts_us: .downtime}
        + ((.memory // {}) | {rung, restore: .restoration, expected_downtime_ms: ((.expected_downtime_us // 0) / 1000),
                              longest_stop_ms: ((.longest_stop_us // 0) / 1000), fill: (.fill // null)})' "$work/summary"
}

# a container with SIZE MiB that are written as LOAD says
begin_memory() { # begin_memory SIZE LOAD
    in_host src testbed-container create "$container" --command \
        "/godwit-workload dirty --dir /data/w --size $1 --rate $(pages_of "$2")" > /dev/null &&
        in_host src timeout 120 sh -c "until [ -e /srv/$container-data/w/ready ]; do sleep 0.1; done" && sleep 1
}

before_stock_memory() { after_transfer='' after_restore='' after_dump=''; }

note_begin_memory() { date +%s%N > "$work/began"; }

# prints the longest gap of the heart since the begin, milliseconds
note_end_memory() {
    in_host dst cat "/srv/$container-data/w/gaps" |
        jq -s --argjson began "$(cat "$work/began")" \
            '[.[] | select(.at_ns >= $began).gap_us] | max // error("no gap was seen") | . / 100 | round / 10'
}

# asks the program at its new place to compare all its pages
check_memory() {
    in_host dst sh -c "cd /srv/$container-data/w && touch check && timeout 120 sh -c 'until [ -e result.1 ]; do sleep 0.05; done' &&
        cat result.1" | tee "$work/result" | jq -e .pass > /dev/null || { head -c 2000 "$work/result" >&2; return 1; }
}
