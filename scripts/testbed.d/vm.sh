# shellcheck shell=bash
# Beds of kind vm: src and dst are QEMU machines, emulated, each with a throw-away overlay of the hosts' disk. The link
# between their eth1 is two unix sockets; ssh to a port of the machine's loopback is the way in. A third machine would
# be too slow: the host `client` is a network namespace in dst, joined to dst's bridge by a veth; it has dst's files
# and processes, and loses the link when dst dies. In the bed's directory: pid.HOST, port.HOST, HOST.console, HOST.log.

vm_memory_mib=1536
# la57 off: a level of page tables less to walk. cx16 off: QEMU 7.2 gets the flags wrong around an emulated
# CMPXCHG16B, and the guest's kernel, which uses it where it can, dies of that within minutes.
vm_cpu=max,la57=off,cx16=off
vm_boot_seconds=180
vm_first_port=22200

# the hosts with files of their own
vm_filesystems() { echo src dst; }

vm_alive() {
    local host
    for host in src dst; do
        process_is "$(cat "$bed/pid.$host" 2> /dev/null)" || return 1
    done
}

# what must be there before vm_up
vm_prepare() {
    need_packages qemu-system-x86=qemu-system-x86_64 openssh-client=ssh iproute2=ss
    root_disk
    # the name of a unix socket has at most 107 bytes
    [ ${#bed} -le 90 ] || die "the path $bed is too long for the sockets of the VMs; set GODWIT_TESTBED_DIR to a shorter one"
}

vm_up() {
    local host
    for host in src dst; do vm_power "$host"; done
    for host in src dst; do vm_wait "$host"; done
    for host in src dst; do vm_connect "$host"; done
}

vm_power() {
    case $1 in
        src) vm_start src dst 1 '' ;;
        dst) vm_start dst src 2 "testbed.client=${address[client]}/24" ;;
    esac
}

# one connection for all commands to come
vm_connect() { vm_ssh "$1" -M -N -f < /dev/null &> /dev/null 9>&-; }

# what the machine has not written to its disk is lost
vm_cut() {
    local identity
    identity=$(cat "$bed/pid.$1")
    if process_is "$identity"; then kill -9 "${identity%% *}"; fi
    while process_is "$identity"; do sleep 0.02; done
    vm_ssh "$1" -O exit &> /dev/null || true
    rm -f "$bed/$1.console" "$bed/$1.link" "$bed/$1.qmp" "$bed/$1.ssh"
}

vm_boot() {
    vm_power "$1"
    vm_wait "$1"
    vm_connect "$1"
}

# starts HOST, linked to PEER; NUMBER makes its hardware addresses, WORDS go to its kernel command line
vm_start() { # vm_start HOST PEER NUMBER WORDS
    local host=$1 peer=$2 number=$3 words=$4 port qemu disk snapshot=on
    locked vm_take_port "$host"
    port=$(cat "$bed/port.$host")
    words="testbed.name=$host testbed.address=${address[$host]}/24 testbed.rate=$rate testbed.init=$init $words"
    words="console=ttyS0 root=/dev/nvme0n1 rw rootfstype=ext4 init=/usr/local/sbin/mini-init $words"
    words="mitigations=off nokaslr quiet net.ifnames=0 tsc=reliable panic=-1 $words"
    disk=$(bed_root)/disk
    if [ "$disks" = keep ]; then
        snapshot=off
        if [ ! -e "$bed/$host.disk" ]; then
            cp --sparse=always "$disk" "$bed/$host.disk"
            # what loses its power must be whole when it is back
            tune2fs -O has_journal "$bed/$host.disk" > /dev/null
        fi
        disk=$bed/$host.disk
    fi
    qemu=(
        qemu-system-x86_64 -M q35 -accel tcg,thread=multi,tb-size=512 -cpu "$vm_cpu" -smp 1 -m "$vm_memory_mib"
        -nodefaults -no-user-config -display none -no-reboot
        -kernel "$(bed_root)/tree/boot/vmlinuz"
        -append "$words"
        -serial "file:$bed/$host.console"
        -drive "if=none,id=disk,file=$disk,format=raw,snapshot=$snapshot,cache=unsafe"
        -device nvme,serial=root,drive=disk
        -netdev "user,id=way-in,restrict=on,hostfwd=tcp:127.0.0.1:$port-:22"
        -device "virtio-net-pci,netdev=way-in,romfile=,mac=02:76:00:00:00:0$number"
        -netdev "dgram,id=link,local.type=unix,local.path=$bed/$host.link,remote.type=unix,remote.path=$bed/$peer.link"
        -device "virtio-net-pci,netdev=link,romfile=,mac=02:77:00:00:00:0$number"
        -qmp "unix:$bed/$host.qmp,server=on,wait=off"
    )
    # QEMU keeps the overlay in TMPDIR
    TMPDIR=$bed setsid "${qemu[@]}" < /dev/null &> "$bed/$host.log" 9>&- &
    process_identity $! > "$bed/pid.$host"
}

# notes for HOST a port of the loopback that nobody listens on, nor a bed is about to
vm_take_port() {
    local port=$vm_first_port
    while [ -n "$(ss -Hltn "sport = :$port")" ] || grep -qsx "$port" "$cache"/beds/*/port.*; do
        port=$((port + 1))
    done
    echo "$port" > "$bed/port.$1"
}

# waits until HOST says that it is up: an ssh before that costs more time than it gains
vm_wait() {
    local deadline=$((SECONDS + vm_boot_seconds))
    until grep -qs "testbed host $1 is up" "$bed/$1.console"; do
        if [ $SECONDS -ge $deadline ] || ! process_is "$(cat "$bed/pid.$1")"; then
            tail -n 20 "$bed/$1.console" "$bed/$1.log"
            die "host $1 did not come up"
        fi
        sleep 0.1
    done
}

vm_ssh() { # vm_ssh HOST SSH-ARGUMENT…
    local host=$1
    shift
    ssh -F none -i "$(bed_root)/key" -p "$(cat "$bed/port.$host")" -o ControlPath="$bed/$host.ssh" \
        -o HostKeyAlias="$host" -o UserKnownHostsFile="$(bed_root)/tree/etc/ssh/ssh_known_hosts" \
        -o StrictHostKeyChecking=yes -o LogLevel=ERROR -o ConnectTimeout=30 root@127.0.0.1 "$@"
}

vm_exec() { # vm_exec HOST COMMAND…
    local host=$1 words
    shift
    if [ "$host" = client ]; then
        host=dst
        set -- ip netns exec client "$@"
    fi
    printf -v words '%q ' "$@"
    vm_ssh "$host" "$words"
}

vm_path() { die 'the files of a VM have no path on this machine; use push and pull'; }

vm_down() {
    local host identity pid
    for host in src dst; do
        [ ! -S "$bed/$host.ssh" ] || vm_ssh "$host" -O exit &> /dev/null || true
    done
    for host in src dst; do
        identity=$(cat "$bed/pid.$host" 2> /dev/null || true)
        if process_is "$identity"; then kill -9 "${identity%% *}"; fi
    done
    for host in src dst; do
        identity=$(cat "$bed/pid.$host" 2> /dev/null || true)
        # its port is held until it is gone
        while process_is "$identity"; do sleep 0.02; done
    done
    rm -rf --one-file-system "$bed"
}
