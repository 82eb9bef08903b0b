use super::*;
use godwit_migration::plan::OnTimeout;

#[test]
fn the_command_line_is_consistent() {
    crate::command().debug_assert();
}

#[test]
fn nonsense_is_refused_with_exit_code_2() {
    for flags in [
        ["--max-downtime", "0ms"],
        ["--max-downtime", "0"],
        ["--max-downtime", "fast"],
        ["--max-rounds", "0"],
        ["--timeout", "-1s"],
        ["--bandwidth", "500MiB"],
        ["--bandwidth", "0gbit"],
        ["--compress", "zstd:99"],
        ["--compress", "lz4"],
        ["--network-plan", "bridge="],
        ["--tracker", "magic"],
        ["--restore", "later"],
        ["--connections", "0"],
        ["--on-timeout", "hope"],
        ["--throttle", "0"],
        ["--throttle", "100"],
        ["--throttle", "half"],
        ["--hook", "pre-copy"],
        ["--hook", "pre-copy=hook"],
        ["--hook", "shutdown=/bin/true"],
        ["--hook-timeout", "0s"],
        ["--hook-timeout", "51s"],
        ["--post-freeze-timeout", "2m"],
        ["--shutdown-timeout", "4m"],
        ["--shutdown-hook", "https://127.0.0.1/"],
        ["--quiesce-hook", "http://web/"],
        ["--resume-hook", "up"],
        ["--hook-listen", "0.0.0.0:0"],
        ["--hook-listen", "127.0.0.1"],
    ] {
        let line = ["godwit", "migrate", "web", "ssh://x"].into_iter().chain(flags);
        let error = Args::try_parse_from(line).expect_err(flags[1]);
        assert_eq!(error.exit_code(), 2, "{flags:?}");
        assert!(error.to_string().contains(flags[1]), "{error}");
    }
}

#[test]
fn somebody_is_asked_where_somebody_sits() {
    let limits = |flags: &[&str], can_ask| {
        let line = ["godwit", "migrate", "web", "ssh://x"].iter().chain(flags);
        match Args::try_parse_from(line).unwrap().command {
            Command::Migrate(migrate) => migrate.limits(can_ask),
            _ => unreachable!(),
        }
    };
    assert_eq!(limits(&[], true).on_timeout, OnTimeout::Ask);
    assert_eq!(limits(&[], false).on_timeout, OnTimeout::Cancel);
    for can_ask in [true, false] {
        assert_eq!(limits(&["--on-timeout", "cancel"], can_ask).on_timeout, OnTimeout::Cancel);
        assert_eq!(limits(&["--on-timeout", "switchover"], can_ask).on_timeout, OnTimeout::Switchover);
        assert_eq!(limits(&["--on-timeout", "ask"], can_ask).on_timeout, OnTimeout::Ask);
    }
    assert_eq!(limits(&[], true).throttle, 0);
    assert_eq!(limits(&["--throttle", "90"], true).throttle, 90);
}
