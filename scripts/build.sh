# shellcheck shell=bash
# The release builds of godwit and of godwit-workload, for the scripts that run them on test hosts. Sourced, after packages.sh.

# builds both in repository $1; their paths are then in $GODWIT_BIN and $GODWIT_WORKLOAD_BIN, which may name what is built already
build_release() {
    local target
    if [ -z "${GODWIT_BIN:-}" ] || [ -z "${GODWIT_WORKLOAD_BIN:-}" ]; then
        need_cargo
        # all packages: what they share is built once
        (cd "$1" && cargo build --release --locked --workspace --exclude godwit-s3-server --bins < /dev/null >&2)
    fi
    target=$(cd "$1" && realpath "${CARGO_TARGET_DIR:-target}")/release
    export GODWIT_BIN=${GODWIT_BIN:-$target/godwit} GODWIT_WORKLOAD_BIN=${GODWIT_WORKLOAD_BIN:-$target/godwit-workload}
}
