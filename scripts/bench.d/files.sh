# shellcheck shell=bash disable=SC2154
# Moves of a container with many files, of which some are written to all the time. Sourced by `bench`.

: "${files:=1000,10000,100000}" "${changed:=1}"

# in the container: writes N files' next states, PERCENT of them a second, until it is told to compare all with what they must be
make_writer() {
    cat > "$work/writer.py" <<'E2'
import os, random, sys, time

count, percent = int(sys.argv[1]), float(sys.argv[2])
states = [0] * count


def path(number):
    return f"/data/tree/d{number // 100}/f{number % 100}"


def write(number):
    with open(path(number), "w") as file:
        file.write(f"{states[number]} ".ljust(1000, "."))


if not os.path.exists("/data/tree"):
    for number in range(count):
        os.makedirs(os.path.dirname(path(number)), exist_ok=True)
        write(number)
open("/data/ready", "w").close()
chance = random.Random(1)
owed = 0.0
while not os.path.exists("/data/check"):
    owed += count * percent / 100 / 20
    while owed >= 1:
        owed -= 1
        number = chance.randrange(count)
        states[number] += 1
        write(number)
    time.sleep(0.05)
wrong = [n for n in range(count) if open(path(n)).read().split()[0] != str(states[n])]
with open("/data/result.new", "w") as file:
    file.write(f"{sum(states)} writes, {len(wrong)} of {count} files wrong: {wrong[:5]}\n")
os.rename("/data/result.new", "/data/result")
time.sleep(3600)
E2
}

# a container that writes to its files
begin_files() { # begin_files FILES
    rm -f "$work"/{summary,line}
    clear_hosts
    "$testbed" push "$work/writer.py" /usr/local/bin/bench-writer.py
    in_host src testbed-container create "$container" --host-usr --command \
        "/usr/bin/python3 /usr/local/bin/bench-writer.py $1 $changed" > /dev/null &&
        in_host src timeout 300 sh -c "until [ -e $data/ready ]; do sleep 0.1; done"
}

measure_files() { # measure_files WAY FILES RUN
    local data=/srv/$container-data
    begin_files "$2" || return 1
    if [ "$1" = rsync ]; then measure_rsync "$@"; else measure_godwit "$@"; fi
}

measure_godwit() {
    in_host src timeout --kill-after=5 300 godwit --json migrate "runc:$container" ssh://dst --no-copy /usr --max-downtime 10s \
        --file-watch "$1" > "$work/summary" || { tail -n 2 "$work/summary" >&2; return 1; }
    in_host dst sh -c "touch $data/check && timeout 120 sh -c 'until [ -e $data/result ]; do sleep 0.05; done' && cat $data/result" |
        tee "$work/result" | grep -q ', 0 of' || { cat "$work/result" >&2; return 1; }
    jq -c --arg way "$1" --argjson files "$2" --argjson changed "$changed" --argjson run "$3" 'select(.message_type == "summary") |
        {way: $way, files: $files, changed_percent: $changed, run: $run, downtime_ms: (.downtime_us / 100 | round / 10),
         dump_ms: (.downtime.dump_us / 100 | round / 10), total_s: (.duration_us / 1000 | round / 1000), rounds: (.rounds | length)}' \
        "$work/summary" > "$work/line"
}

# two passes while the container runs, the third while it is paused: what a script would do; only that pass is counted. rsync takes a
# file of the same size and second for unchanged: how many it leaves wrong is counted, too
measure_rsync() {
    local copy="rsync -aHAX --numeric-ids --delete $data/ dst:$data/" took
    in_host dst mkdir -p "$data"
    took=$(in_host src timeout --kill-after=5 300 sh -ec "$copy; $copy; runc pause $container
        began=\$(date +%s%N); $copy; ended=\$(date +%s%N)
        rsync -naHAXc --numeric-ids --delete --itemize-changes $data/ dst:$data/ >&2
        runc resume $container; echo \$(((ended - began) / 100000))" 2> "$work/differs") || { cat "$work/differs" >&2; return 1; }
    jq -nc --argjson files "$2" --argjson changed "$changed" --argjson run "$3" --argjson took "$took" \
        --argjson wrong "$(wc -l < "$work/differs")" \
        '{way: "rsync", files: $files, changed_percent: $changed, run: $run, pass_ms: ($took / 10), wrong: $wrong}' > "$work/line"
}

bench_files() {
    local count run way
    push_moves
    make_writer
    for count in ${files//,/ }; do for ((run = 1; run <= runs; run++)); do for way in auto never rsync; do
        if measure_files $way "$count" "$run" 2> "$work/errors"; then
            say "$count files: $(jq -r 'if .way == "rsync" then "rsync: last pass \(.pass_ms) ms, \(.wrong) files wrong"
                else "\(.way): downtime \(.downtime_ms) ms, dump and files \(.dump_ms) ms" end' "$work/line")"
        else
            say "$count files: $way FAILED"
            tail -n 20 "$work/errors" >&2 || true
            jq -nc --arg way $way --argjson run "$run" '{way: $way, run: $run, failed: true}' > "$work/line"
        fi
        keep_line
    done; done; done
}

# medians of each number of files, and their ratio
sum_files() {
    jq -sc 'def median: sort | .[length / 2 | floor];
        map(select(.failed | not)) | group_by(.files) | map(. as $runs | {files: .[0].files, changed_percent: .[0].changed_percent} + ([
            ("auto", "never") as $way | {($way): ($runs | map(select(.way == $way)) | select(length > 0) |
                {downtime_ms: (map(.downtime_ms) | median), least_ms: (map(.downtime_ms) | min), most_ms: (map(.downtime_ms) | max),
                 dump_ms: (map(.dump_ms) | median)})}] | add)
            | .rsync_ms = ($runs | map(select(.way == "rsync").pass_ms) | median)
            | .rsync_wrong = ($runs | map(select(.way == "rsync").wrong) | median)
            | .ratio = (.never.downtime_ms / .auto.downtime_ms * 100 | round / 100)
            | .rsync_ratio = (.rsync_ms / .auto.dump_ms * 100 | round / 100)) | {sizes: .}' "$work/lines"
}

table_files() {
    sum_files | jq -r '
        "| files | told by the kernel: downtime, ms (least–most) | of it dump and files | all looked at: downtime, ms (least–most) | of it dump and files | last pass of rsync, ms | files that it leaves wrong | downtime, looked at / told | rsync / dump and files, told |",
        "|---|---|---|---|---|---|---|---|---|",
        (.sizes[] | "| \(.files) | \(.auto.downtime_ms) (\(.auto.least_ms)–\(.auto.most_ms)) | \(.auto.dump_ms) | \(.never.downtime_ms) (\(.never.least_ms)–\(.never.most_ms)) | \(.never.dump_ms) | \(.rsync_ms) | \(.rsync_wrong) | \(.ratio) | \(.rsync_ratio) |")'
}

title_files() {
    printf '# Moves of many files\n\n'
    printf 'A container with a volume of files of 1000 bytes, %s %% of which are written anew each second; medians. After each move the\n' "$changed"
    printf 'program compares every file with what it must hold. The last pass of rsync is the third `rsync -aHAX --delete` over ssh, two while\n'
    printf 'the container runs and this one while it is paused; a dump of the process would come to it. It takes a file\n'
    printf 'of the same size and second for unchanged; a dry run with `-c` counts those that it leaves wrong.\n'
}

ways_files() { echo "\`--file-watch auto\`, \`never\` and rsync in turns; fewer than 5,000 files are looked at in either case"; }
