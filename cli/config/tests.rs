use super::file::LAST_GOOD;
use super::*;
use proptest::prelude::*;

fn wrong(text: &str) -> (usize, String) {
    match file::understand(Path::new("/x/config.toml"), text) {
        Err(ConfigError::Wrong { line, reason, .. }) => (line, reason),
        other => panic!("{text:?} is understood: {other:?}"),
    }
}

fn name(text: &str) -> Name {
    Name::find(text).unwrap()
}

#[test]
fn every_key_is_an_option_that_takes_one_value() {
    for key in KEYS {
        assert!(!key.help().is_empty(), "{key}");
        // nothing but what clap has: the built-in value is one that can be set
        if let Some(value) = key.built_in() {
            assert_eq!(Name::Option(key).check(&value), Ok(()), "{key}");
        }
        assert!(Name::Option(key).check("\u{1}").is_err() || key.option == "remote-command", "{key}");
        assert_eq!(Name::find(&key.to_string()), Ok(Name::Option(key)));
    }
    assert!(name("node.listen").check("ssh://rack2").is_err());
    assert!(
        !KEYS.iter().any(|key| key.option == "insecure"),
        "protection is given up on a command line only"
    );
}

#[test]
fn a_default_of_the_file_is_one_of_the_command_line() {
    let text = "version = 1\n[migrate]\nmax-downtime = \"1s\"\nmax-rounds = 3\nbandwidth = '1gbit'\n[store]\nquota = \"1GiB\"\n";
    let config = file::understand(Path::new("x"), text).unwrap();
    let parse = |line: &[&str]| {
        let command = config.apply(crate::command());
        command.clone().debug_assert();
        let matches = command.try_get_matches_from(line).unwrap();
        Args::from_arg_matches(&matches).unwrap().command
    };
    let Command::Migrate(some) = parse(&["godwit", "migrate", "web", "ssh://b", "--max-rounds", "5"]) else {
        panic!("no migrate")
    };
    assert_eq!((some.max_downtime.as_secs(), some.max_rounds, some.bandwidth), (1, 5, Some(125_000_000)));
    let Command::Store(crate::args::StoreCommand::Add(add)) = parse(&["godwit", "store", "add", "/x"]) else {
        panic!("no store add")
    };
    assert_eq!(add.quota, Some(1 << 30));
}

#[test]
fn a_line_that_is_wrong_is_named() {
    for (text, line, words) in [
        ("version = 1\n[migrate]\nmax-downtme = \"1s\"\n", 3, "is it `migrate.max-downtime`?"),
        ("version = 1\n\n[migrate]\nmax-downtime = \"fast\"\n", 4, "fast"),
        ("version = 1\n[migrate]\nmax-rounds = 0\n", 3, "max-rounds"),
        ("version = 1\n[migrate]\nmax-rounds = [1]\n", 3, "wants one value"),
        ("version = 1\n[migrate]\npace = true\n", 3, "wants one value"),
        ("version = 1\n[hosts]\nrack2 = \"rack2\"\n", 3, "is not an address"),
        ("version = 1\n[hosts]\n\"a b\" = \"ssh://a\"\n", 3, "cannot be a host's name"),
        ("version = 1\n[migrate]\ninsecure = true\n", 3, "there is no key `migrate.insecure`"),
        ("version = 1\nmax-downtime = \"1s\"\n", 2, "there is no key `max-downtime`"),
        ("version = 2\n", 1, "understands version 1"),
        ("version = 1\n[migrate\n", 2, ""),
        ("version = 1\n[migrate]\npace = \"full\"\npace = \"gentle\"\n", 4, "duplicate"),
        ("[migrate]\npace = \"full\"\n", 1, "it has no `version = 1`"),
        ("", 1, "it has no `version = 1`"),
    ] {
        let (found, reason) = wrong(text);
        assert_eq!(found, line, "{text}: {reason}");
        assert!(reason.contains(words), "{text}: {reason}");
    }
}

#[test]
fn what_people_wrote_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etc").join(FILE);
    assert!(!edit(&path, &name("migrate.max-downtime"), Some("1s")).unwrap());
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("# The downtime that you accept\nmax-downtime = \"1s\""), "{text}");

    let mine = "# mine\nversion = 1\n[migrate] # all moves\npace = 'full' # at night\n# the end\n";
    std::fs::write(&path, mine).unwrap();
    assert!(edit(&path, &name("migrate.pace"), Some("gentle")).unwrap());
    assert!(!edit(&path, &name("migrate.max-rounds"), Some("3")).unwrap());
    assert!(!edit(&path, &name("hosts.rack2"), Some("ssh://root@rack2")).unwrap());
    let text = std::fs::read_to_string(&path).unwrap();
    for words in [
        "# mine\n",
        "[migrate] # all moves\n",
        "pace = \"gentle\" # at night\n",
        "max-rounds = 3\n",
        "# the end\n",
    ] {
        assert!(text.contains(words), "{text}");
    }
    let config = Config::load_from(&path).unwrap();
    assert_eq!(config.hosts["rack2"].value, "ssh://root@rack2");
    for key in ["migrate.max-rounds", "hosts.rack2"] {
        assert!(edit(&path, &name(key), None).unwrap());
    }
    assert!(!edit(&path, &name("migrate.max-rounds"), None).unwrap());
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("hosts") && text.contains("pace"), "{text}");
    assert_eq!(std::fs::read_to_string(path.with_file_name(LAST_GOOD)).unwrap(), text);
}

#[test]
fn a_broken_file_is_left_as_it_is_and_the_last_good_one_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    edit(&path, &name("migrate.pace"), Some("full")).unwrap();
    let good = std::fs::read_to_string(&path).unwrap();
    let broken = format!("{good}[migrate]\n");
    std::fs::write(&path, &broken).unwrap();
    let error = edit(&path, &name("migrate.pace"), Some("gentle")).unwrap_err();
    assert!(error.hint().contains(LAST_GOOD), "{}", error.hint());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), broken);
    assert_eq!(std::fs::read_to_string(path.with_file_name(LAST_GOOD)).unwrap(), good);
    // nothing else is left of the attempt
    let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.count(), 3, "the file, the last good one, and the lock");
}

#[test]
fn two_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    std::thread::scope(|scope| {
        for host in 0..8 {
            let path = &path;
            scope.spawn(move || edit(path, &name(&format!("hosts.h{host}")), Some("ssh://a")).unwrap());
        }
    });
    assert_eq!(Config::load_from(&path).unwrap().hosts.len(), 8);
}

proptest! {
    // every change is on the disk before it counts: that takes its time
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_text_is_a_reason_to_panic(text in "(version = 1\n)?(\\[(migrate|hosts|store)\\]\n)?\\PC{0,200}") {
        let _ = file::understand(Path::new("x"), &text);
    }

    #[test]
    fn what_is_set_is_what_is_read(values in proptest::collection::vec((0..4usize, 1..999u32), 1..12)) {
        let keys = ["migrate.max-rounds", "migrate.retries", "hosts.a", "hosts.b"];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut model = BTreeMap::new();
        for (key, value) in values {
            let key = keys[key];
            // a third of them are taken out again
            let value = match (value % 3, key.starts_with("hosts")) {
                (0, _) => None,
                (_, true) => Some(format!("ssh://h{value}")),
                (_, false) => Some(value.to_string()),
            };
            let was_there = edit(&path, &name(key), value.as_deref()).unwrap();
            let before = match value {
                Some(value) => model.insert(key, value),
                None => model.remove(key),
            };
            prop_assert_eq!(was_there, before.is_some());
            let config = Config::load_from(&path).unwrap();
            for key in keys {
                let found = config.setting(&name(key)).map(|setting| &setting.value);
                prop_assert_eq!(found, model.get(key), "{}", key);
            }
        }
    }
}
