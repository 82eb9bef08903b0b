# shellcheck shell=bash
# What scripts need of this machine, installed when it is missing. Sourced; everything it says goes to standard error.

# need_packages PACKAGE=FILE…: installs the packages of which this machine lacks the command or, with a /, the file
need_packages() {
    local package missing=()
    for package; do
        if [[ $package == *=/* ]]; then
            [ -e "${package#*=}" ] || missing+=("${package%%=*}")
        else
            command -v "${package#*=}" > /dev/null || missing+=("${package%%=*}")
        fi
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get > /dev/null || {
        echo "${0##*/}: this machine lacks ${missing[*]}, and apt-get to install it" >&2
        return 1
    }
    [ "$(id -u)" = 0 ] || {
        echo "${0##*/}: this machine lacks ${missing[*]}, which only root can install" >&2
        return 1
    }
    echo "${0##*/}: installing ${missing[*]}" >&2
    # the lists of packages may be missing or old: then once more with new ones
    apt_install "${missing[@]}" || {
        apt-get -qq update < /dev/null >&2
        apt_install "${missing[@]}"
    }
}

# A package's service is not started: whoever wants one starts their own.
apt_install() (
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' > $policy
        chmod 755 $policy
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" < /dev/null >&2
)

# finds cargo, also where rustup puts it when no profile was read
need_cargo() {
    command -v cargo > /dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    command -v cargo > /dev/null || {
        echo "${0##*/}: cargo is missing: install Rust 1.90 or later" >&2
        return 1
    }
    # the linker, and the compiler of zstd and blake3
    need_packages gcc=cc libc6-dev=/usr/include/stdio.h
}
