# shellcheck shell=bash disable=SC2154
# Moves whose files and memory neighbours have, and moves in which all comes from the source. Sourced by `bench`.

# MiB: what the container's root directory holds besides its programs, a volume that it may only read, one that it may write to
: "${layers:=1,10,100}" "${read_only:=0.1,10,100}" "${writable:=0.1,10,100}"
memory_mib=64
# pages that the program writes in a second, each of them once; percent of them that differ from the earlier checkpoint
memory_rate=100 memory_changed=5
node_ports=(7711 7712)
neighbours=tcp://client:7711,tcp://client:7712

# a tree of the source, copied to where the neighbours are, is put into the store of some of them
teach() { # teach TREE PIN NUMBER…
    local tree=$1 pin=$2 number
    shift 2
    mkdir -p "$("$testbed" path client)/srv/taught"
    rsync -a --delete --numeric-ids "$("$testbed" path src)$tree/" "$("$testbed" path client)/srv/taught/" || return 1
    for number; do
        in_host client env GODWIT_ROOT="/srv/node$number" godwit --quiet store add /srv/taught --pin "$pin" > /dev/null || return 1
    done
}

# a checkpoint of the memory is put into the store of a neighbour while the container goes on. Returns when as much has changed since as
# shall; the files are no part of it, they are taught by themselves
teach_memory() { # teach_memory NUMBER
    local checkpoint=/srv/$container-checkpoint taken
    in_host src godwit --quiet checkpoint "runc:$container" --to "$checkpoint" --leave-running --no-copy "/srv/$container/rootfs" \
        --no-copy "/srv/$container-data" --no-copy /srv/bench-ro > /dev/null || return 1
    taken=${EPOCHREALTIME/./}
    teach "$checkpoint" "checkpoint/$container" "$1" && in_host src rm -r "$checkpoint" || return 1
    sleep "$(awk "BEGIN { left = $memory_mib * 256 * $memory_changed / 100 / $memory_rate - (${EPOCHREALTIME/./} - $taken) / 1e6
        print (left > 0 ? left : 0) }")"
}

# a file of random bytes at the source
random_file() { # random_file MIB PATH
    in_host src sh -c "mkdir -p \$(dirname $2) && head -c $(awk "BEGIN { printf \"%d\", $1 * 1048576 }") /dev/urandom > $2"
}

# the nodes of the neighbours, in the background; they look for their store whenever somebody comes
start_nodes() {
    local number
    for number in 0 1; do
        in_host client env GODWIT_ROOT="/srv/node$number" godwit --quiet node serve --insecure \
            --listen "tcp://0.0.0.0:${node_ports[number]}" > /dev/null 2>&1 &
    done
    in_host dst timeout 20 sh -c "until godwit node list $neighbours --insecure > /dev/null 2>&1; do sleep 0.1; done"
}

# the links of the reference experiment: source to destination 100 Mbit/s, neighbours to destination 942
shape_links() {
    local host
    for host in src:100mbit client:942mbit; do
        in_host "${host%:*}" tc qdisc replace dev eth1 root tbf rate "${host#*:}" burst 128kb latency 100ms || return 1
    done
}

begin_cell() { # begin_cell WAY LAYER READ_ONLY WRITABLE
    clear_hosts
    in_host client sh -c 'rm -rf /srv/node* /srv/taught'
    random_file "$3" /srv/bench-ro/file || return 1
    in_host src testbed-container create "$container" --read-only /srv/bench-ro --command \
        "/godwit-workload dirty --dir /data/w --size $memory_mib --rate $memory_rate" > /dev/null || return 1
    random_file "$2" "/srv/$container/rootfs/layer/file" && random_file "$4" "/srv/$container-data/volume/file" || return 1
    in_host src timeout 120 sh -c "until [ -e /srv/$container-data/w/ready ]; do sleep 0.1; done" || return 1
    if [ "$1" = cooperative ]; then
        teach "/srv/$container/rootfs" snapshot/layer 0 && teach /srv/bench-ro snapshot/read-only 0 1 &&
            teach "/srv/$container-data" snapshot/writable 1 || return 1
    fi
    # a twentieth of the volume, in one place
    in_host src python3 - "/srv/$container-data/volume/file" <<'E2' || return 1
import os, sys
size = os.path.getsize(sys.argv[1])
with open(sys.argv[1], "r+b") as file:
    file.seek(size // 3)
    file.write(os.urandom(size // 20))
E2
    if [ "$1" = cooperative ]; then teach_memory 1; else sleep 1; fi
}

# what godwit is told in each of the ways: all from the source; neighbours that have it; neighbours that have nothing
flags_of() {
    case $1 in
        traditional) echo '--cooperative never' ;;
        *) echo '--cooperative auto' ;;
    esac
}

measure_cell() { # measure_cell WAY LAYER READ_ONLY WRITABLE RUN
    rm -f "$work"/{summary,line}
    begin_cell "$@" || return 1
    # shellcheck disable=SC2046 # two words
    in_host src timeout --kill-after=5 300 godwit --json migrate "runc:$container" ssh://dst --on-timeout switchover \
        --remote-command "godwit receive --stdio --insecure --neighbours $neighbours" $(flags_of "$1") \
        > "$work/summary" || { tail -n 2 "$work/summary" >&2; return 1; }
    check_memory || return 1
    local volume
    for volume in bench-ro "$container-data/volume" "$container/rootfs/layer"; do
        [ -z "$(in_host src rsync -aHAX --checksum --dry-run --delete --itemize-changes "/srv/$volume/" "dst:/srv/$volume/")" ] ||
            { echo "$volume differs" >&2; return 1; }
    done
    # what each phase took; `gather` is part of `prepare`
    local phases
    phases=$(jq -sc 'map(select(.message_type == "phase" and .event == "end") | {(.phase): (.duration_us / 1000 | round / 1000)}) | add' \
        "$work/summary") || return 1
    jq -c --argjson phases "$phases" --arg way "$1" --argjson layer "$2" --argjson read_only "$3" --argjson writable "$4" --argjson run "$5" \
        'select(.message_type == "summary") |
        {way: $way, layer_mib: $layer, read_only_mib: $read_only, writable_mib: $writable, run: $run,
         total_s: (.duration_us / 1000 | round / 1000), downtime_ms: (.downtime_us / 100 | round / 10), source_bytes: .wire_bytes,
         own_bytes: (.cooperation.own_bytes // 0), neighbour_bytes: [(.cooperation.neighbours // [])[].bytes],
         memory: {checkpoint_pages: (.cooperation.pages // 0), pages_of_it: .memory.pages_shared, pages_sent: .memory.pages_sent}}
        + {parts_s: ($phases + {gather: ((.cooperation.duration_us // 0) / 1000 | round / 1000)})}' "$work/summary" > "$work/line"
}

bench_cooperative() {
    local layer ro rw way run
    push_moves
    shape_links || die 'the links cannot be shaped'
    start_nodes || die 'the neighbours do not answer'
    for layer in ${layers//,/ }; do for ro in ${read_only//,/ }; do for rw in ${writable//,/ }; do
        for ((run = 1; run <= runs; run++)); do
            for way in traditional cooperative strangers; do
                if measure_cell $way "$layer" "$ro" "$rw" "$run" 2> "$work/errors"; then
                    say "layer $layer, read-only $ro, writable $rw MiB: $(jq -r '"\(.way) \(.total_s) s, downtime \(.downtime_ms) ms"' "$work/line")"
                else
                    say "layer $layer, read-only $ro, writable $rw MiB: $way FAILED"
                    tail -n 20 "$work/errors" >&2 || true
                    jq -nc --arg way $way --argjson run "$run" '{way: $way, run: $run, failed: true}' > "$work/line"
                fi
                keep_line
            done
        done
    done; done; done
    in_host client pkill -x godwit || true
}

# all cells as one object: medians, and ratios of each cell's two totals
sum_cooperative() {
    jq -sc 'def median: sort | if length == 0 then null else .[length / 2 | floor] end;
        map(select(.failed | not)) | . as $all
        | (group_by([.layer_mib, .read_only_mib, .writable_mib]) | map(
            (map({(.way): .}) | add) as $ways
            | select($ways.traditional and $ways.cooperative and $ways.strangers)
            | {layer_mib: .[0].layer_mib, read_only_mib: .[0].read_only_mib, writable_mib: .[0].writable_mib} + ([
                ("traditional", "cooperative", "strangers") as $way
                | {($way): (map(select(.way == $way)) | {total_s: (map(.total_s) | median), downtime_ms: (map(.downtime_ms) | median),
                    source_bytes: (map(.source_bytes) | median), neighbour_bytes: (map(.neighbour_bytes) | last),
                    memory: (map(.memory) | last), parts_s: (map(.parts_s) | last)})}] | add)
            )) as $cells
        | {cells: $cells,
           mean_total_s: ([("traditional", "cooperative", "strangers") as $way | {($way): ($cells | map(.[$way].total_s) | add / length * 100 | round / 100)}] | add),
           median_ratio: ($cells | map(.traditional.total_s / .cooperative.total_s) | median),
           median_ratio_strangers: ($cells | map(.strangers.total_s / .traditional.total_s) | median),
           median_downtime_ms: ([("traditional", "cooperative", "strangers") as $way | {($way): ($cells | map(.[$way].downtime_ms) | median)}] | add)}' "$work/lines"
}

table_cooperative() {
    sum_cooperative | jq -r '
        def mib: . / 1048576 * 10 | round / 10;
        def mib_of_pages: . * 4096 | mib;
        def parts: [("negotiate", "prepare", "gather", "pre-copy") as $part | .parts_s[$part] * 100 | round / 100 | tostring] | join(", ");
        "| layer, read-only, writable, MiB | all from the source, s | cooperative, s | neighbours have nothing, s | from the source, MiB | cooperative | neighbours gave, MiB | memory, MiB: from the checkpoint, the source | cooperative, s: negotiate, prepare, of it gather, rounds | downtime, ms: source, cooperative, nothing |",
        "|---|---|---|---|---|---|---|---|---|---|",
        (.cells[] | "| \(.layer_mib), \(.read_only_mib), \(.writable_mib) | \(.traditional.total_s) | \(.cooperative.total_s) | \(.strangers.total_s) | \(.traditional.source_bytes | mib) | \(.cooperative.source_bytes | mib) | \(.cooperative.neighbour_bytes | map(mib | tostring) | join(" + ")) | \(.cooperative.memory.pages_of_it | mib_of_pages), \(.cooperative.memory.pages_sent | mib_of_pages) | \(.cooperative | parts) | \(.traditional.downtime_ms), \(.cooperative.downtime_ms), \(.strangers.downtime_ms) |"),
        "",
        "Mean total of all cells: \(.mean_total_s.traditional) s from the source, \(.mean_total_s.cooperative) s cooperative, \(.mean_total_s.strangers) s where the neighbours have nothing. Medians of the cells: \(.median_ratio * 100 | round / 100) times less time cooperative; \(.median_ratio_strangers * 100 | round / 100) times as much where they have nothing; downtime \(.median_downtime_ms.traditional), \(.median_downtime_ms.cooperative) and \(.median_downtime_ms.strangers) ms."'
}

title_cooperative() {
    printf '# Moves whose files and memory are near\n\n'
    printf 'A container with %s MiB of memory, all of it and of its files from the source against what two neighbours of the destination have:\n' "$memory_mib"
    printf 'the same files, and an earlier state of those that it writes to and of its memory, of each of which %s %% have changed since.\n' "$memory_changed"
    # shellcheck disable=SC2016 # nothing is to expand
    printf '`scripts/bench --help` says what exactly is measured. One move each.\n'
}

ways_cooperative() { echo "source to destination 100 Mbit/s, neighbours to destination 942 Mbit/s together, as tc has it"; }
