//! A real etcd over TLS: who it is, and who this host is, are proved by certificates of an authority.
#![allow(clippy::unwrap_used)]

use godwit_etcd::{Client, EtcdError, Place};
use godwit_etcd_server::{Etcd, Tls};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// An authority, as itself and as its certificate.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), certificate)
    }

    /// A certificate and its key, which only their owner can read.
    fn sign(&self, dir: &Path, name: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), params.signed_by(&key, &self.0).unwrap().pem())
            .unwrap();
        let path = dir.join(format!("{name}.key"));
        std::fs::write(&path, key.serialize_pem()).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
    }
}

fn ask(place: &Place, dir: &Path) -> Result<Option<String>, EtcdError> {
    Client::new(place, dir)?.get("/godwit/x")
}

#[test]
fn both_sides_prove_who_they_are() {
    let (authority, other) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    authority.sign(dir, "server");
    let ca = dir.join("etcd-ca.pem");
    std::fs::write(&ca, &authority.1).unwrap();
    let tls = Tls { authority: ca.clone(), certificate: dir.join("server.pem"), key: dir.join("server.key") };
    let Some(etcd) = Etcd::start_with(Some(tls)) else { return };
    let place: Place = etcd.place().parse().unwrap();
    let refused = |dir: &Path, why: &str| {
        let error = ask(&place, dir).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    };
    // without a certificate, and with one of another authority
    refused(dir, "no etcd answers");
    other.sign(dir, "etcd-client");
    refused(dir, "no etcd answers");
    authority.sign(dir, "etcd-client");
    assert_eq!(ask(&place, dir).unwrap(), None);
    assert_eq!(Client::new(&place, dir).unwrap().make_once("/godwit/x", "source").unwrap(), "source");
    // a key that others can read, or that is none
    let key = dir.join("etcd-client.key");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o640)).unwrap();
    refused(dir, "can be read by others (mode 640");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&key, "x").unwrap();
    refused(dir, "etcd-client.key` has no private key");
    // an etcd that somebody else vouches for
    authority.sign(dir, "etcd-client");
    std::fs::write(&ca, &other.1).unwrap();
    refused(dir, "no etcd answers");
    std::fs::remove_file(&ca).unwrap();
    refused(dir, "etcd-ca.pem` is missing");
}
