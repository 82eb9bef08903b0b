# shellcheck shell=bash
# The release build of godwit, for the scripts that run it on test hosts. Sourced, after packages.sh.

# builds godwit in repository $1; its path is then in $GODWIT_BIN, which may name one that is built already
build_release() {
    [ -z "${GODWIT_BIN:-}" ] || return 0
    need_cargo
    (cd "$1" && cargo build --release --locked < /dev/null >&2)
    GODWIT_BIN=$(cd "$1" && realpath "${CARGO_TARGET_DIR:-target}/release/godwit")
    export GODWIT_BIN
}
