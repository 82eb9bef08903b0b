use super::*;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};

/// Bytes that a plain piece of an age file has, and what sealing adds to each.
const PIECE: u64 = (64 << 10) + 16;

struct Bench {
    dir: tempfile::TempDir,
    identity: x25519::Identity,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap(), identity: x25519::Identity::generate() };
        let tree = bench.path("plain/trees/0");
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::create_dir(bench.path("opened")).unwrap();
        let noise: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(tree.join("noise"), noise).unwrap();
        std::fs::write(bench.path("plain/checkpoint.json"), "a secret word").unwrap();
        std::fs::set_permissions(tree.join("noise"), PermissionsExt::from_mode(0o4711)).unwrap();
        symlink("/nowhere", tree.join("link")).unwrap();
        File::create(tree.join("holes")).unwrap().set_len(64 << 20).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn seal(&self) -> u64 {
        let other = x25519::Identity::generate().to_public().to_string();
        let recipients = Recipients::parse(&[other, self.identity.to_public().to_string()]).unwrap();
        seal(&self.path("plain"), &self.path("sealed"), &recipients, &Cancel::default()).unwrap()
    }

    fn identities(&self, identity: &x25519::Identity) -> Identities {
        use age::secrecy::ExposeSecret;
        let path = self.path("key");
        let _ = std::fs::remove_file(&path);
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path).unwrap();
        writeln!(file, "# a key\n{}", identity.to_string().expose_secret()).unwrap();
        Identities::read(&[path]).unwrap()
    }

    fn unseal(&self) -> Result<(), SealError> {
        let into = self.path("opened");
        std::fs::remove_dir_all(&into).unwrap();
        std::fs::DirBuilder::new().mode(0o700).create(&into).unwrap();
        unseal(&self.path("sealed"), &self.identities(&self.identity), &into, &Cancel::default())
    }
}

#[test]
fn what_is_sealed_comes_back_whole_and_nobody_else_reads_it() {
    let bench = Bench::new();
    let length = bench.seal();
    let sealed = bench.path("sealed");
    let bytes = std::fs::read(&sealed).unwrap();
    assert!(is_sealed(&sealed).unwrap() && !is_sealed(&bench.path("plain/checkpoint.json")).unwrap());
    assert!(!is_sealed(&bench.path("plain")).unwrap() && !is_sealed(&bench.path("nothing")).unwrap());
    assert_eq!((bytes.len() as u64, sealed.metadata().unwrap().mode() & 0o7777), (length, 0o600));
    assert!(length < 1 << 20, "holes are not written out: {length}");
    assert!(!bytes.windows(6).any(|some| some == b"secret" || some == b"check/"));
    bench.unseal().unwrap();
    let (plain, opened) = (bench.path("plain/trees/0"), bench.path("opened/trees/0"));
    assert_eq!(std::fs::read(plain.join("noise")).unwrap(), std::fs::read(opened.join("noise")).unwrap());
    assert_eq!(opened.join("noise").metadata().unwrap().mode() & 0o7777, 0o4711);
    assert_eq!(std::fs::read_link(opened.join("link")).unwrap(), Path::new("/nowhere"));
    let holes = opened.join("holes").metadata().unwrap();
    assert!(holes.len() == 64 << 20 && holes.blocks() < 64, "{}", holes.blocks());

    let wrong = bench.identities(&x25519::Identity::generate());
    let refused = unseal(&sealed, &wrong, &bench.path("opened"), &Cancel::default()).unwrap_err();
    assert!(matches!(refused, SealError::NotForUs { .. }), "{refused}");
}

#[test]
fn what_is_cut_off_anywhere_is_refused() {
    let bench = Bench::new();
    let length = bench.seal();
    bench.unseal().unwrap();
    let whole = std::fs::read(bench.path("sealed")).unwrap();
    let end = whole.windows(4).position(|some| some == b"\n---").unwrap() as u64 + 1;
    // after `---`, a space, 43 characters, and a line feed: a nonce of 16 bytes, then the pieces
    let payload = end + 3 + 1 + 43 + 1 + 16;
    let pieces = (length - payload).div_ceil(PIECE);
    assert!(pieces >= 4, "{pieces}");
    let borders = (0..pieces).map(|piece| payload + piece * PIECE);
    let mut cuts: Vec<u64> = borders.flat_map(|at| [at - 1, at, at + 1, at + 16, at + 17]).collect();
    cuts.extend([0, 5, end, length - 17, length - 16, length - 1]);
    for cut in cuts.into_iter().filter(|cut| *cut < length) {
        std::fs::write(bench.path("sealed"), &whole[..cut as usize]).unwrap();
        let refused = bench.unseal().expect_err(&format!("cut at {cut} of {length}"));
        assert!(matches!(refused, SealError::Damaged { .. }), "cut at {cut} of {length}: {refused}");
    }
    std::fs::write(bench.path("sealed"), [&whole[..], b"x"].concat()).unwrap();
    let refused = bench.unseal().unwrap_err();
    assert!(matches!(refused, SealError::Damaged { .. }), "{refused}");
}

#[test]
fn a_bit_that_flips_anywhere_is_seen() {
    let bench = Bench::new();
    let length = bench.seal();
    let whole = std::fs::read(bench.path("sealed")).unwrap();
    for at in [40, 200, 300, 500, 70_000, length / 2, length - 20, length - 1] {
        let mut bytes = whole.clone();
        bytes[at as usize] ^= 1;
        std::fs::write(bench.path("sealed"), &bytes).unwrap();
        let refused = bench.unseal().expect_err(&format!("at {at}"));
        assert!(
            matches!(refused, SealError::Damaged { .. } | SealError::NotForUs { .. }),
            "at {at}: {refused}"
        );
    }
}

/// What tar makes of these arguments, sealed.
fn seal_tar(bench: &Bench, args: &[&str]) {
    let output = Command::new("tar").args(args).current_dir(bench.path("plain")).output().unwrap();
    let recipient = bench.identity.to_public();
    std::fs::write(bench.path("sealed"), age::encrypt(&recipient, &output.stdout).unwrap()).unwrap();
}

#[test]
fn an_archive_that_leads_elsewhere_is_refused_or_kept_inside() {
    let bench = Bench::new();
    std::fs::write(bench.path("victim"), "untouched").unwrap();
    seal_tar(&bench, &["-cPf", "-", "--transform=s,checkpoint.json,../victim,", "checkpoint.json"]);
    let refused = bench.unseal().unwrap_err();
    assert!(matches!(refused, SealError::Tar(_)) && refused.to_string().contains(".."), "{refused}");
    let victim = bench.path("victim").display().to_string();
    let rename = format!("--transform=s,checkpoint.json,{victim},");
    seal_tar(&bench, &["-cPf", "-", &rename, "checkpoint.json"]);
    bench.unseal().unwrap();
    assert!(bench.path(&format!("opened{victim}")).exists());
    // a link first, then a file through it
    symlink(bench.dir.path(), bench.path("plain/out")).unwrap();
    std::fs::write(bench.path("plain/inner"), "changed").unwrap();
    seal_tar(&bench, &["-cPf", "-", "--transform=flags=r;s,inner,out/victim,", "out", "inner"]);
    let _ = bench.unseal();
    assert_eq!(std::fs::read_to_string(bench.path("victim")).unwrap(), "untouched");
}

#[test]
fn what_cannot_be_sealed_leaves_nothing() {
    let bench = Bench::new();
    let recipients = Recipients::parse(&[bench.identity.to_public().to_string()]).unwrap();
    let to = bench.path("sealed");
    let cancel = Cancel::default();
    std::fs::write(bench.path("sealed.part"), "of a dead one").unwrap();
    assert!(matches!(seal(&bench.path("missing"), &to, &recipients, &cancel), Err(SealError::Tar(_))));
    cancel.raise();
    assert!(matches!(seal(&bench.path("plain"), &to, &recipients, &cancel), Err(SealError::Interrupted)));
    assert!(!to.exists() && !bench.path("sealed.part").exists());
}

#[test]
fn keys_come_from_arguments_and_files_and_are_not_repeated() {
    use age::secrecy::ExposeSecret;
    let bench = Bench::new();
    let recipient = bench.identity.to_public().to_string();
    let secret = bench.identity.to_string().expose_secret().to_owned();
    let list = bench.path("list");
    std::fs::write(&list, format!("# two\n{recipient}\n\n{recipient}\n")).unwrap();
    let at_list = format!("@{}", list.display());
    assert_eq!(Recipients::parse(&[recipient.clone(), at_list.clone()]).unwrap().0.len(), 3);
    let parse = |text: &str| Recipients::parse(&[text.to_owned()]).err().unwrap().to_string();
    assert!(parse("age1nonsense").contains("`age1nonsense` is no recipient"));
    std::fs::write(&list, format!("{secret}\n")).unwrap();
    assert!(!parse(&at_list).contains(&secret[..30]));
    std::fs::write(&list, "# none\n").unwrap();
    assert!(parse(&at_list).contains("it names none"));
    // a file that others can read, and one that is no identity
    std::fs::write(&list, &secret).unwrap();
    std::fs::set_permissions(&list, PermissionsExt::from_mode(0o640)).unwrap();
    let read = || Identities::read(std::slice::from_ref(&list)).err().unwrap().to_string();
    assert!(read().contains("others can read it"), "{}", read());
    std::fs::write(&list, format!("{}x\n", &secret[..secret.len() - 1])).unwrap();
    std::fs::set_permissions(&list, PermissionsExt::from_mode(0o600)).unwrap();
    assert!(read().contains("line 1") && !read().contains(&secret[..30]), "{}", read());
    std::fs::write(&list, "# none\n").unwrap();
    assert!(read().contains("AGE-SECRET-KEY-1…"), "{}", read());
}
