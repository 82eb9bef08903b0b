# shellcheck shell=bash
# A process is remembered as "PID START", START being when it started in clock ticks since boot (proc_pid_stat(5),
# field 22): together they are never given to another process.

# prints the identity of process PID; fails when it is gone
process_identity() {
    local stat fields
    stat=$(cat "/proc/$1/stat" 2> /dev/null) || return 1
    # field 2, the name, is in parentheses and may itself contain spaces and parentheses; field 3 comes first here
    read -ra fields <<< "${stat##*) }"
    echo "$1 ${fields[19]}"
}

# whether the process of identity "PID START" is there
process_is() { [ -n "${1:-}" ] && [ "$(process_identity "${1%% *}")" = "$1" ]; }
