# shellcheck shell=bash
# Each namespace host, and the switch between them, has a cgroup of its own at the root of every hierarchy of the
# machine. It bounds what the host sees and does, and everything in it is the bed's, which makes taking it down sure.
# The host's processes are in a leaf of it: cgroup v2 and the runtimes want no process beside containers.

cgroup_hierarchies() { awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts; }
cgroup_v2() { awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts; }
cgroup_name() { echo "testbed-$name-$1"; } # of HOST
# where the processes of HOST are that are nobody else's; systemd's own place is no worse than another one
cgroup_leaf() { if [ "$(ns_init "$1")" = systemd ]; then echo init.scope; else echo init; fi; }

# makes the cgroups of HOST
cgroup_make() {
    local hierarchy own file
    [ -n "$(cgroup_v2)" ] || die 'this machine has no cgroup v2 mounted'
    for hierarchy in $(cgroup_hierarchies); do
        own=$hierarchy/$(cgroup_name "$1")
        mkdir -p "$own"
        if [ -e "$own/cgroup.clone_children" ]; then
            echo 1 > "$own/cgroup.clone_children"
            for file in cpuset.cpus cpuset.mems; do
                [ ! -e "$own/$file" ] || cat "$hierarchy/$file" > "$own/$file"
            done
        fi
        mkdir -p "$own/$(cgroup_leaf "$1")"
        if [ -e "$own/cgroup.subtree_control" ]; then
            sed 's/[^ ]*/+&/g' "$own/cgroup.controllers" > "$own/cgroup.subtree_control"
        fi
    done
}

# moves PROCESS into the cgroups of HOST, below them into LEAF if given
cgroup_enter() { # cgroup_enter PROCESS HOST [LEAF]
    local hierarchy
    for hierarchy in $(cgroup_hierarchies); do
        echo "$1" > "$hierarchy/$(cgroup_name "$2")/${3:-}/cgroup.procs"
    done
}

# moves all processes of HOST that are still at the root of its cgroups into the leaf
cgroup_settle() {
    local root process
    root=$(cgroup_v2)/$(cgroup_name "$1")
    while read -r process < "$root/cgroup.procs"; do
        cgroup_enter "$process" "$1" "$(cgroup_leaf "$1")" 2> /dev/null || true
    done
}

# prints the cgroups of HOST that exist
cgroup_list() {
    local hierarchy own
    for hierarchy in $(cgroup_hierarchies); do
        own=$hierarchy/$(cgroup_name "$1")
        [ ! -d "$own" ] || echo "$own"
    done
}

# kills all that runs in the cgroups of HOST, frozen or not, and removes them
cgroup_remove() {
    local list own file process
    mapfile -t list < <(cgroup_list "$1")
    # a task frozen by cgroup v1 does not die before it is thawed
    for file in $(cgroup_find -name freezer.state); do
        echo THAWED > "$file" || true
    done
    for own in "${list[@]}"; do
        [ ! -e "$own/cgroup.kill" ] || echo 1 > "$own/cgroup.kill"
    done
    for _ in {1..1000}; do
        [ ${#list[@]} -gt 0 ] || return 0
        for process in $(cgroup_find -name cgroup.procs -exec cat {} + 2> /dev/null); do
            kill -9 "$process" 2> /dev/null || true
        done
        cgroup_find -depth -type d -exec rmdir {} + 2> /dev/null || true
        mapfile -t list < <(cgroup_list "$1")
        [ ${#list[@]} = 0 ] || sleep 0.01
    done
    die "cgroups are still in use: ${list[*]}"
}

# finds in the cgroups of `list`
cgroup_find() { [ ${#list[@]} = 0 ] || find "${list[@]}" "$@"; }
