//! What engines and runtimes say; it names no cause when that is in CRIU's log.

use super::Subject::Engine;
use super::{Rule, rule};

pub(super) const RULES: &[Rule] = &[
    rule(
        &["type NOTIFY errno"],
        Engine,
        "the runtime tells that CRIU failed, and not why",
        "the reason is in CRIU's log: run `godwit explain` on it",
    )
    .at(&[("log", "log file: ", "")]),
    rule(
        &["custom checkpointdir is not supported"],
        Engine,
        "this docker cannot restore from a directory of its own choice",
        "put the images into /var/lib/docker/containers/ID/checkpoints/NAME, and start with `--checkpoint NAME`",
    ),
    rule(
        &["experimental"],
        Engine,
        "docker's checkpoints are turned off",
        "set `\"experimental\": true` in /etc/docker/daemon.json, and restart the daemon",
    ),
    rule(&["requires at least CRIU"], Engine, "the engine wants a newer criu", "install it on this host"),
    rule(&["requires", "criu version"], Engine, "the engine wants a newer criu", "install it on this host"),
    rule(
        &["with terminal"],
        Engine,
        "the runtime does not checkpoint a container with a terminal",
        "start it without a terminal (no `-t`)",
    ),
    rule(
        &["rootless"],
        Engine,
        "containers without root cannot be checkpointed",
        "run the container as root",
    ),
];
