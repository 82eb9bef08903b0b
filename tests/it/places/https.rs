//! Over TLS: nothing is said to whoever does not prove to be the server.

use super::*;
use godwit_s3_server::Authority;

/// A place that is spoken to over TLS, with an authority of its own.
struct Secured {
    scene: Scene,
    authority: Authority,
}

impl Secured {
    fn new() -> Self {
        let scene = Scene::new(1);
        scene.snapshot();
        let secured = Self { scene, authority: Authority::new("ours") };
        std::fs::write(secured.path("ours.pem"), &secured.authority.certificate).unwrap();
        secured
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scene.dir.path().join(name)
    }

    /// A server of the same buckets that proves with this who it is.
    fn serve(&self, proof: &str) -> Server {
        std::fs::write(self.path("proof.pem"), proof).unwrap();
        Server::start_with(&self.path("buckets"), Some(&self.path("proof.pem")))
    }

    /// godwit, which knows the server by this address, on the host `root`.
    fn godwit(&self, root: &str, url: &str, more: &[(&str, &str)], words: &[&str]) -> Ran {
        let mut command = self.scene.command(root, url, words);
        finish({
            command.env("AWS_CA_BUNDLE", self.path("ours.pem")).envs(more.iter().copied());
            command
        })
    }

    /// It is refused, and for this reason.
    #[track_caller]
    fn assert_refused(&self, url: &str, more: &[(&str, &str)], code: i32, why: &str) {
        let ran = self.godwit("here", url, more, &self.scene.put(&[]));
        assert_eq!(ran.code, code, "{}{}", ran.out, ran.err);
        assert!(ran.out.contains(why), "`{why}` is not in {}{}", ran.out, ran.err);
        assert!(self.scene.objects().is_empty(), "something is there");
    }
}

fn url(server: &Server) -> String {
    format!("https://{}", server.address)
}

#[test]
fn a_snapshot_goes_and_comes_over_tls_with_an_authority_of_the_users_own() {
    let secured = Secured::new();
    let server = secured.serve(&secured.authority.sign("127.0.0.1"));
    let put = secured.godwit("here", &url(&server), &[], &secured.scene.put(&[]));
    assert_eq!(put.code, 0, "{}{}", put.out, put.err);
    assert!(object(&put)["sent_bytes"].as_u64() > Some(MIB as u64), "{}", put.out);
    let took = secured.godwit("there", &url(&server), &[], &secured.scene.take(&[]));
    assert_eq!(took.code, 0, "{}{}", took.out, took.err);
    assert!(object(&took)["received_bytes"].as_u64() > Some(MIB as u64), "{}", took.out);
    // also by the request that is godwit's own
    let gone = secured.godwit("there", &url(&server), &[], &["--json", "images", "gc", PLACE]);
    assert_eq!(
        (gone.code, &object(&gone)["uploads_unlisted"]),
        (0, &Value::Null),
        "{}{}",
        gone.out,
        gone.err
    );
}

#[test]
fn a_server_that_proves_nothing_is_told_nothing_whatever_the_environment_says_of_it() {
    let secured = Secured::new();
    let ours = &secured.authority;
    let server = secured.serve(&Authority::new("theirs").sign("127.0.0.1"));
    let unknown = "no authority that counts here has signed it";
    secured.assert_refused(&url(&server), &[], 1, unknown);
    secured.assert_refused(&url(&server), &[("AWS_ALLOW_INVALID_CERTIFICATES", "true")], 1, unknown);
    let server = secured.serve(&ours.sign("s3.example.org"));
    secured.assert_refused(&url(&server), &[], 1, "only valid for");
    let server = secured.serve(&ours.sign_until("127.0.0.1", 2020));
    secured.assert_refused(&url(&server), &[], 1, "it has expired");
    let server = secured.serve(&Authority::as_server("127.0.0.1"));
    secured.assert_refused(&url(&server), &[], 1, "it is one of an authority");
    // and what would be right for whoever trusts that file is not where the host's own authorities count
    let server = secured.serve(&ours.sign("127.0.0.1"));
    secured.assert_refused(&url(&server), &[("AWS_CA_BUNDLE", "")], 1, "`AWS_CA_BUNDLE`");
}

#[test]
fn a_file_of_authorities_that_has_none_is_refused_before_anybody_is_asked() {
    let secured = Secured::new();
    let line = secured.scene.line(|_| Fault::None);
    std::fs::write(secured.path("words.pem"), "not a certificate").unwrap();
    std::fs::write(secured.path("odd.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    for (name, why) in
        [("none.pem", "cannot be read"), ("words.pem", "there is no certificate"), ("odd.pem", "odd.pem")]
    {
        let path = secured.path(name);
        let path = path.to_str().unwrap();
        secured.assert_refused(&line.url, &[("AWS_CA_BUNDLE", path)], 2, why);
    }
    assert_eq!(line.seen(), []);
}

#[test]
fn nothing_goes_in_the_clear_where_nobody_has_written_http() {
    let secured = Secured::new();
    let line = secured.scene.line(|_| Fault::None);
    let plain = line.url.strip_prefix("http://").unwrap();
    let allowed = [("AWS_ALLOW_HTTP", "true")];
    for more in [&[][..], &allowed] {
        secured.assert_refused(&format!("https://{plain}"), more, 1, "cannot");
        secured.assert_refused(&format!("HTTP://{plain}"), more, 1, "cannot");
    }
    let is_said = |request: &Request| request.target.contains("of-tests");
    assert!(!line.seen().iter().any(is_said), "{:?}", line.seen());
}
