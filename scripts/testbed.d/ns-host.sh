#!/bin/bash
# ns-host.sh NAME DIR TREE SHARE v1|v2 tini|systemd: process 1 of a namespace host. Run in the host's new namespaces.
# Makes the host's file system in DIR, of the hosts' system TREE; moves into it, and leaves tini to wait for orphans,
# or systemd to do what it does.
set -euo pipefail
name=$1 dir=$2 tree=$3 share=$4 cgroup=$5 init=$6

mkdir -p "$dir"/{upper,work,root}
# volatile: the bed is thrown away, so nothing waits for its files to reach the disk
mount -t overlay overlay -o "volatile,lowerdir=$tree,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
cd "$dir/root"

# places that must not be on an overlay: containers are made and received there
for place in srv var/lib/containers var/lib/docker var/lib/godwit; do
    mkdir -p "$dir/disk/$place" "$place"
    mount --bind "$dir/disk/$place" "$place"
done
mount --bind "$share" mnt/share

mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p run/lock run/netns run/sshd

mount -t tmpfs -o mode=755 tmpfs dev
mkdir -p dev/{pts,shm,mqueue,net}
while read -r node major minor; do
    mknod -m 666 "dev/$node" c "$major" "$minor"
done <<'E2'
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
net/tun 10 200
fuse 10 229
E2
mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t mqueue mqueue dev/mqueue
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr

if [ "$cgroup" = v2 ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    while IFS=: read -r _ controllers _; do
        [ -n "$controllers" ] || continue
        mkdir "sys/fs/cgroup/${controllers#name=}"
        mount -t cgroup -o "${controllers/#name=/none,name=}" cgroup "sys/fs/cgroup/${controllers#name=}"
    done < proc/self/cgroup
fi

mkdir -p mnt/machine
exec 3> "$dir/ready.new"
pivot_root . mnt/machine
cd /
hostname "$name"
mv "/mnt/machine$dir/ready.new" "/mnt/machine$dir/ready"
exec 3>&-
umount -l /mnt/machine
rmdir /mnt/machine
mount --make-rshared /
if [ "$init" = systemd ]; then
    # it leaves the kernel's settings alone in what it takes for a container
    exec env -i container=testbed /usr/lib/systemd/systemd --unit testbed.target
fi
exec tini -- sleep infinity
