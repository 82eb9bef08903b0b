# shellcheck shell=bash disable=SC2154
# How long containers of several sizes stand still, by godwit and by CRIU and runc alone. Sourced by `bench`.

# the number of pages a second of a load, as godwit-workload takes it
pages_of() {
    case $1 in
        idle) echo 0 ;;
        full) echo full ;;
        dirty*k) echo "${1:5:-1}000" ;;
        dirty*) echo "${1:5}" ;;
    esac
}

# measures one move; its line of JSON is in $work/line. Fails when the move or the content was not as it must be
measure() { # measure TOOL SIZE LOAD RUN
    local tool=$1 size=$2 load=$3 run=$4 kind=memory
    [ "$load" != redis ] || kind=redis
    rm -f "$work"/{told,line}
    clear_hosts
    "begin_$kind" "$size" "$load" || return 1
    "note_begin_$kind" || return 1
    "move_$tool" "$kind" > "$work/told" || return 1
    sleep 1
    "note_end_$kind" > "$work/gap" || return 1
    "check_$kind" || return 1
    jq -c --arg tool "$tool" --argjson size "$size" --arg load "$load" --argjson run "$run" \
        --argjson gap "$(cat "$work/gap")" \
        '{tool: $tool, size_mib: $size, load: $load, run: $run, downtime_ms, frozen_ms, probe_gap_ms: $gap, wire_bytes}
         + (del(.downtime_ms, .frozen_ms, .wire_bytes))' "$work/told" > "$work/line"
}

bench_memory() {
    local load size run tool tools
    push_moves
    for load in ${loads//,/ }; do
        for size in ${sizes//,/ }; do
            if [ "$load" = redis ] && [ "$size" -gt 512 ]; then continue; fi
            for ((run = 1; run <= runs; run++)); do
                tools=(stock godwit)
                [ $((run % 2)) = 1 ] || tools=(godwit stock)
                for tool in "${tools[@]}"; do
                    if measure "$tool" "$size" "$load" "$run" 2> "$work/errors"; then
                        say "$load $size MiB, run $run: $(jq -r '"\(.tool) \(.downtime_ms) ms, gap \(.probe_gap_ms) ms"' "$work/line")"
                    else
                        say "$load $size MiB, run $run: $tool FAILED"
                        tail -n 20 "$work/errors" "$work/told" >&2 || true
                        jq -nc --arg tool "$tool" --argjson size "$size" --arg load "$load" --argjson run "$run" \
                            '{tool: $tool, size_mib: $size, load: $load, run: $run, failed: true}' > "$work/line"
                    fi
                    keep_line
                done
            done
        done
    done
}

sum_memory() { "$GODWIT_WORKLOAD_BIN" bench-table --json < "$work/lines"; }
table_memory() { "$GODWIT_WORKLOAD_BIN" bench-table < "$work/lines"; }

title_memory() {
    printf '# Downtime by size of memory\n\n'
    printf 'How long a container stands still while it moves, by CRIU and runc alone (stock) and by godwit.\n'
    # shellcheck disable=SC2016 # nothing is to expand
    printf '`scripts/bench --help` says what exactly is measured. Medians (least to most), milliseconds.\n'
}

# how godwit did it, for the description of the machine
ways_memory() {
    jq -rs '[.[] | select(.tool == "godwit" and .rung) | "tracker \(.tracker), dump by \(.rung), restore \(.restore)"]
        | group_by(.) | map("\(.[0]) (\(length) runs)") | join("; ")' "$work/lines"
}
