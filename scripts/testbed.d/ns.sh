# shellcheck shell=bash
# Beds of kind ns: each host is a set of namespaces (mount, pid, network, uts, ipc, cgroup) on an overlay of the
# hosts' system. The switch between them is a bridge in a network namespace of its own, so that the machine's own
# network never sees the bed. In the bed's directory: pid.HOST is the host's process 1, HOST/ has its files.

ns_filesystems() { echo "${hosts[@]}"; }

ns_alive() {
    local host
    for host in switch "${hosts[@]}"; do
        process_is "$(cat "$bed/pid.$host" 2> /dev/null)" || return 1
    done
}

# what must be there before ns_up
ns_prepare() {
    need_packages iproute2=ip util-linux=nsenter
    ns_widen_pipes
    mkdir -p "$cache/share"
}

ns_up() {
    local host pid number=0 switch

    echo "${init:-tini}" > "$bed/init"
    cgroup_make switch
    (cgroup_enter "$BASHPID" switch init && exec setsid unshare -n sleep infinity) < /dev/null &> "$bed/log.switch" 9>&- &
    switch=$!
    process_identity "$switch" > "$bed/pid.switch"
    until [ "$(readlink /proc/$switch/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
    nsenter -t "$switch" -n ip link add br0 type bridge forward_delay 0
    nsenter -t "$switch" -n ip link set br0 up

    for host in "${hosts[@]}"; do ns_start "$host"; done
    for host in "${hosts[@]}"; do
        number=$((number + 1))
        ns_wait "$host"
        pid=$(ns_pid "$host")
        ip link add "p-$host" netns "$switch" type veth \
            peer name eth1 address "02:77:00:00:00:0$number" netns "$pid"
        nsenter -t "$switch" -n ip link set "p-$host" master br0 up
        if [ "$host" = client ]; then
            (ns_exec "$host" testbed-link plain "${address[$host]}/24" "$rate")
        else
            (ns_exec "$host" testbed-link bridge "${address[$host]}/24" "$rate")
            [ "$(ns_init "$host")" != systemd ] || ns_await_systemd "$host"
            (ns_exec "$host" /usr/sbin/sshd)
        fi
    done
}

# starts process 1 of HOST
ns_start() {
    local dir=$bed/$1
    mkdir -p "$dir"
    cgroup_make "$1"
    (
        cgroup_enter "$BASHPID" "$1"
        exec setsid unshare -m -p -n -u -i -C -f --propagation private \
            bash "$parts/ns-host.sh" "$1" "$dir" "$(bed_root)/tree" "$cache/share" "$cgroup" "$(ns_init "$1")"
    ) < /dev/null &> "$bed/log.$1" 9>&- &
    echo $! > "$dir/unshare"
}

# what is process 1 of HOST; only those that have containers have a choice
ns_init() {
    case $1 in
        src | dst) cat "$bed/init" ;;
        *) echo tini ;;
    esac
}

# waits until process 1 of HOST has set up its files
ns_wait() {
    local dir=$bed/$1 unshare pid
    unshare=$(cat "$dir/unshare")
    for _ in {1..500}; do
        [ ! -e "$dir/ready" ] || break
        [ -e "/proc/$unshare" ] || break
        sleep 0.01
    done
    [ -e "$dir/ready" ] || { cat "$bed/log.$1"; die "host $1 did not start"; }
    pid=$(cat "/proc/$unshare/task/$unshare/children")
    process_identity "${pid%% *}" > "$bed/pid.$1"
    # systemd has places of its own
    [ "$(ns_init "$1")" = systemd ] || cgroup_settle "$1"
}

# waits until all has started that systemd starts in HOST
ns_await_systemd() {
    local state=
    for _ in {1..300}; do
        state=$( (ns_exec "$1" systemctl is-system-running 2> /dev/null) || true)
        [ "$state" != running ] || return 0
        sleep 0.1
    done
    die "systemd of host $1 is $state: \`testbed exec $1 systemctl --failed\` says why"
}

# the machine's pid of process 1 of HOST
ns_pid() { cut -d' ' -f1 "$bed/pid.$1"; }

ns_path() { echo "/proc/$(ns_pid "$1")/root"; }

# replaces the shell by COMMAND in HOST
ns_exec() { # ns_exec HOST COMMAND…
    local host=$1 pid
    shift
    pid=$(ns_pid "$host")
    cgroup_enter "$BASHPID" "$host" "$(cgroup_leaf "$host")" 9>&-
    exec nsenter -t "$pid" -m -p -n -u -i -C -r \
        env -i -C /root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" "$@" 9>&-
}

ns_down() {
    local host
    for host in "${hosts[@]}" switch; do cgroup_remove "$host"; done
    rm -rf --one-file-system "$bed"
    locked ns_restore_pipes
}

# A page server of CRIU takes pipes of more than the default limit of 1 MiB, which only CAP_SYS_RESOURCE may pass.
# The limit is the machine's: it is raised while a bed of namespaces is up, and put back with the last one.
ns_widen_pipes() {
    local limit=/proc/sys/fs/pipe-max-size
    [ "$(cat $limit)" -lt 16777216 ] || return 0
    cat $limit > "$cache/pipe-max-size"
    echo 16777216 > $limit
}

ns_restore_pipes() {
    [ -e "$cache/pipe-max-size" ] || return 0
    ! compgen -G "$cache/beds/*.ns" > /dev/null || return 0
    cat "$cache/pipe-max-size" > /proc/sys/fs/pipe-max-size
    rm "$cache/pipe-max-size"
}
