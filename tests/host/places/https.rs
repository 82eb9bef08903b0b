//! The server speaks TLS, with a certificate of an authority that only whoever names it trusts.

use super::*;
use crate::tls::{Keys, make_key, trust};
use godwit_s3_server::Authority;

const SECURE: &str = "https://10.77.0.3:9000";
const ADDRESS: &str = "10.77.0.3";
const PLACE: &str = "s3://of-tests/secured";

/// The server, which proves with this who it is.
fn serve_with<'a>(bed: &'a Bed, proof: &str) -> Background<'a> {
    bed.write(CLIENT, "/srv/proof.pem", proof);
    serve_at(bed, 200, SECURE, &["/srv/proof.pem"])
}

/// An authority of which both hosts know.
fn known_authority(bed: &Bed) -> Authority {
    let authority = Authority::new("ours");
    for host in [SRC, DST] {
        bed.write(host, "/srv/ours.pem", &authority.certificate);
    }
    authority
}

/// What godwit runs with that trusts the authority.
fn environment() -> Vec<String> {
    let keys = KEYS.map(|(name, key)| format!("{name}={key}"));
    [&keys[..], &[format!("AWS_ENDPOINT_URL={SECURE}"), "AWS_CA_BUNDLE=/srv/ours.pem".into()]].concat()
}

fn securely(bed: &Bed, host: &str, words: &[&str]) -> Said {
    let environment = environment();
    let environment: Vec<&str> = environment.iter().map(String::as_str).collect();
    godwit_with(bed, host, &environment, &[&["--json"], words].concat())
}

#[test]
fn a_checkpoint_goes_over_tls_and_whoever_does_not_prove_to_be_the_server_gets_none() {
    let Some(bed) = bed() else { return };
    let authority = known_authority(&bed);
    let redis = Redis::create(&bed, "web", 16);
    let put = ["checkpoint", "runc:web", "--to", PLACE, "--tcp-established"];
    let unknown = Authority::new("theirs").sign(ADDRESS);
    for (proof, why) in [
        (unknown, "no authority that counts here has signed it"),
        (authority.sign("10.77.0.4"), "not valid for name"),
        (authority.sign_until(ADDRESS, 2020), "it has expired"),
    ] {
        let _server = serve_with(&bed, &proof);
        let said = securely(&bed, SRC, &put);
        assert_eq!(said.code, 1, "{}{}", said.out, said.err);
        assert!(said.out.contains(why) && said.out.contains("`AWS_CA_BUNDLE`"), "{}", said.out);
        redis.assert_untouched(&bed);
        assert_eq!(bed.sh(CLIENT, &format!("find {BUCKETS}/of-tests -type f")), "");
        assert_nothing_is_left(&bed);
    }
    {
        // a server that knows nothing of TLS is not spoken to otherwise
        let _server = serve(&bed, 200);
        let said = securely(&bed, SRC, &put);
        assert_eq!(said.code, 1, "{}{}", said.out, said.err);
        redis.assert_untouched(&bed);
    }
    let _server = serve_with(&bed, &authority.sign(ADDRESS));
    let digest = redis.digest(&bed);
    line(&securely(&bed, SRC, &put), "checkpoint_put");
    assert!(runc_state(&bed, SRC, "web").is_none());
    line(&securely(&bed, DST, &["restore", PLACE]), "restored");
    assert_eq!(redis.digest(&bed), digest);
    assert_runs_only_on(&bed, DST, "web");
    assert_nothing_is_left(&bed);
}

#[test]
fn a_migration_by_way_of_a_bucket_is_carried_over_tls() {
    let Some(bed) = bed() else { return };
    let authority = known_authority(&bed);
    let _keys = Keys::none(&bed);
    let (src, dst) = (make_key(&bed, SRC), make_key(&bed, DST));
    trust(&bed, SRC, "dst", &dst);
    trust(&bed, DST, "src", &src);
    let redis = Redis::create(&bed, "web", 16);
    let migrate = ["migrate", "runc:web", "tls://dst", "--via", PLACE, "--tcp-established"];
    {
        let _server = serve_with(&bed, &Authority::new("theirs").sign(ADDRESS));
        let said = securely(&bed, SRC, &migrate);
        assert_eq!(said.code, 1, "{}{}", said.out, said.err);
        assert!(said.out.contains("no authority that counts here has signed it"), "{}", said.out);
        assert_eq!(said.lines("exit_error")[0]["disposition"], "untouched", "{}", said.out);
        redis.assert_untouched(&bed);
    }
    let _server = serve_with(&bed, &authority.sign(ADDRESS));
    let digest = redis.digest(&bed);
    let words = [&["env".into()], &environment()[..]].concat();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let receive = ["godwit", "--json", "receive", "--via", PLACE];
    let receiver = Background::start(&bed, DST, &[&words[..], &receive].concat());
    let said = securely(&bed, SRC, &[&migrate[..], &["--max-downtime", "30s"]].concat());
    assert_eq!(said.summary()["disposition"], "running_at_destination");
    assert_eq!(receiver.finish().code, 0);
    assert_eq!(redis.digest(&bed), digest);
    assert_runs_only_on(&bed, DST, "web");
    assert_eq!(bed.sh(CLIENT, &format!("find {BUCKETS}/of-tests -type f")), "");
}
