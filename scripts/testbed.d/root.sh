# shellcheck shell=bash
# The system of the test hosts, built once from the recipes in vm-images and kept in the cache:
#   debian-HASH/     Debian with the packages, the kernel and a newer criu (network, a minute)
#   root-HASH/tree   the same, configured as a test host (no network, seconds)
#   root-HASH/key    the ssh key into it
#   root-HASH/disk   the tree as a disk of a VM, made when the first VM wants it
# HASH is that of the recipes; a changed recipe thus makes a new directory, and a directory is only ever complete.

debian_recipes=(packages debian criu)
root_recipes=(configure bundle container-image testbed-link testbed-container mini-init image)

recipes_hash() { (cd "$recipes" && sha256sum "$@" | sha256sum | cut -c1-12); }
# where the system of the recipes as they are now belongs
debian_dir() { echo "$cache/debian-$(recipes_hash "${debian_recipes[@]}")"; }
root_dir() { echo "$cache/root-$(recipes_hash "${debian_recipes[@]}" "${root_recipes[@]}")"; }

# the system that the bed was brought up with
bed_root() { cat "$bed/root"; }

# builds what is missing of the hosts' system
root_build() {
    local debian root
    debian=$(debian_dir) root=$(root_dir)
    [ ! -d "$root" ] || return 0
    need_packages debootstrap=debootstrap openssh-client=ssh-keygen xz-utils=xz kmod=modinfo
    root_clean
    if [ ! -d "$debian" ]; then
        step 'building the Debian system' "$recipes/debian" "$debian.new"
        mv "$debian.new" "$debian"
    fi
    step 'configuring the test hosts' root_configure "$debian" "$root.new"
    mv "$root.new" "$root"
}

root_configure() { # root_configure DEBIAN ROOT
    mkdir "$2"
    cp -a "$1" "$2/tree"
    ssh-keygen -q -t ed25519 -N '' -C testbed -f "$2/key"
    "$recipes/configure" "$2/tree" "$2/key"
}

# makes the disk of the VMs of the bed's system
root_disk() {
    local root
    root=$(bed_root)
    [ ! -e "$root/disk" ] || return 0
    need_packages e2fsprogs=mke2fs
    step 'making the disk of the VMs' "$recipes/image" "$root/tree" "$root/disk.new"
    mv "$root/disk.new" "$root/disk"
}

# removes systems of older recipes that no bed uses, and halves that an interrupted build left
root_clean() {
    local dir
    for dir in "$cache"/{debian,root}-*; do
        [ -d "$dir" ] || continue
        [ "$dir" != "$(debian_dir)" ] || continue
        ! grep -qsx "$dir" "$cache"/beds/*/root || continue
        # an interrupted debootstrap leaves /proc mounted
        awk -v dir="$dir/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | xargs -r umount
        rm -rf --one-file-system "$dir"
    done
}
