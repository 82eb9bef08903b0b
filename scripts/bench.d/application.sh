# shellcheck shell=bash disable=SC2154
# What the clients of a redis feel while it moves back and forth. Sourced by `bench`, after memory.sh and redis.sh.

stop_file=/run/bench-stop
client_load=''

# runs client.py in the client's host; what it prints is in $work/samples
start_client() { # start_client ARGUMENT…
    in_host client sh -c "rm -f $stop_file; exec timeout --kill-after=5 400 python3 /usr/local/lib/bench-client.py \"\$@\"" \
        sh "$@" "$stop_file" < /dev/null > "$work/samples" &
    client=$!
}

stop_client() {
    in_host client touch "$stop_file"
    wait "$client"
}

# as many requests as the connections carry. Server and client have a processor each: where the scheduler puts them otherwise
# changes by the second, and with it half of what they do
start_load() {
    in_host "$place" sh -c 'taskset -acp 0 $(pgrep -o redis-server)' > /dev/null
    in_host client sh -c "echo \$\$ > /run/bench-load; exec timeout --kill-after=5 400 taskset -c 1 \
        redis-benchmark -h $redis_address -c 50 -t set -d 4000 -r 100000 -n 1000000000" < /dev/null &> "$work/load" &
    client_load=$!
}

stop_load() {
    [ -n "$client_load" ] || return 0
    # shellcheck disable=SC2016 # the host's shell expands it
    in_host client sh -c 'kill $(cat /run/bench-load)' || true
    wait "$client_load" || true
    client_load=''
}

# moves the container to the host where it is not; what godwit says is in $work/move, with times. Sets $place
move_application() { # move_application OPTION…
    local from=$place to=dst
    [ "$from" = src ] || to=src
    in_host "$from" timeout --kill-after=5 400 godwit --json migrate "runc:$container" "ssh://$to" --tcp-established \
        --on-timeout switchover "$@" | while IFS= read -r line; do printf '%s\t%s\n' "${EPOCHREALTIME/./}" "$line"; done \
        > "$work/move" || { tail -n 2 "$work/move" >&2; return 1; }
    place=$to
}

# measures one move; its line of JSON is in $work/line
measure_latency() { # measure_latency RUN
    local moved=yes
    start_client send "$redis_address" 1000
    sleep 5
    move_application || moved=no
    sleep 2
    stop_client && [ $moved = yes ] || return 1
    figures latency "$1"
}

# stops the godwit that moves the container for two seconds in every four, and notes when it goes and when it stands: what else
# the machine has to do changes within seconds, so that only neighbours can be compared
stop_and_go() { # stop_and_go HOST
    in_host "$1" sh -c '
        now() { date "+$1 %s%6N"; }
        until p=$(pgrep -o -f "^godwit --json migrate"); do sleep 0.1; done
        sleep 2
        while now go && sleep 2 && kill -STOP $p; do
            now stand; sleep 2; kill -CONT $p
        done' 2> /dev/null > "$work/windows"
}

measure_throughput() { # measure_throughput RUN PACE
    local moved=yes
    start_load
    sleep 1
    start_client count "$redis_address"
    sleep 20.5
    : > "$work/windows"
    [ "$2" != gentle ] || stop_and_go "$place" &
    # without a limit a container that writes as fast as it can goes on with rounds until there were eight
    move_application --timeout 2m --pace "$2" || moved=no
    wait $!
    sleep 3
    stop_load
    stop_client && [ $moved = yes ] || return 1
    figures throughput "$1" "$2"
}

figures() { # figures MEASURE RUN [PACE]
    local figures
    local files=("$work/samples" "$work/move")
    [ "$1" = latency ] || files+=("$work/windows")
    figures=$(python3 "$parts/figures.py" "$1" "${files[@]}") || return 1
    jq -c --arg measure "$1" --argjson run "$2" --arg pace "${3:-}" --argjson size "$size" --arg to "$place" \
        '{measure: $measure, run: $run, size_mib: $size, to: $to} + (if $pace == "" then {} else {pace: $pace} end) + .' \
        <<< "$figures" > "$work/line"
}

# one move; whatever it was that failed, the next one finds the container where it is
try() { # try MEASURE RUN [PACE]
    local measure=$1 run=$2 pace=${3:-}
    if "measure_$measure" "$run" ${pace:+"$pace"} 2> "$work/errors"; then
        say "$measure${pace:+, pace $pace}, run $run: $(jq -r 'if .measure == "latency"
            then "p99 \(.usual_p99_ms) ms, in the rounds \(.rounds_p99_ms), after \(.after_p99_ms), gap \(.gap_ms)"
            else "\(.before_per_s) SETs a second, in the rounds \(.rounds_per_s) (\(.rounds_ratio))" end' "$work/line")"
    else
        say "$measure${pace:+, pace $pace}, run $run: FAILED"
        tail -n 20 "$work/errors" "$work/move" >&2 || true
        stop_load
        jq -nc --arg measure "$measure" --argjson run "$run" --arg pace "$pace" \
            '{measure: $measure, run: $run, pace: $pace, failed: true}' > "$work/line"
    fi
    keep_line
}

bench_application() {
    local run pace size=$sizes place=src
    # the first network namespace makes /run/netns a mount for good
    for host in src dst; do in_host "$host" sh -c 'ip netns add first && ip netns del first'; done
    "$testbed" push "$parts/client.py" /usr/local/lib/bench-client.py
    in_host src testbed-container create "$container" "$redis_address" > /dev/null
    in_host src redis-cli -h "$redis_address" config set appendonly no > /dev/null
    fill_redis "$size"
    if [[ $measures == *latency* ]]; then
        for ((run = 1; run <= 2 * runs; run++)); do try latency "$run"; done
    fi
    [[ $measures == *throughput* ]] || return 0
    # the keys of the load are there before: afterwards the memory does not grow
    in_host client redis-benchmark -h "$redis_address" -q -c 50 -t set -d 4000 -r 100000 -n 300000 > /dev/null
    for ((run = 1; run <= runs; run++)); do
        for pace in gentle full; do try throughput "$run" "$pace"; done
    done
}

sum_application() { python3 "$parts/figures.py" sum "$work/lines"; }
table_application() { python3 "$parts/figures.py" table "$work/lines"; }

title_application() {
    printf '# What the application feels of a move\n\n'
    printf 'A redis of %s MiB moves back and forth between two hosts while a third one uses it.\n' "$sizes"
    # shellcheck disable=SC2016 # nothing is to expand
    printf '`scripts/bench --help` says what exactly is measured. Medians (least to most).\n'
}

ways_application() {
    jq -rs '[.[] | select(.tracker) | "strategy \(.strategy), tracker \(.tracker), restore \(.restore)"]
        | group_by(.) | map("\(.[0]) (\(length) moves)") | join("; ")' "$work/lines"
}
