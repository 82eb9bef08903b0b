//! This host's own key.

use super::{Fingerprint, Peers, TlsError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where keys, trusted hosts and the policy are: `GODWIT_ETC`, or /etc/godwit.
pub fn config_dir() -> PathBuf {
    let named = std::env::var_os("GODWIT_ETC").filter(|dir| !dir.is_empty());
    named.map_or_else(|| PathBuf::from("/etc/godwit"), PathBuf::from)
}

/// This host's key and certificate, and whom it trusts.
pub struct Identity {
    /// What this host is called: no more than a proposal to others.
    pub name: String,
    /// Of this host's key.
    pub fingerprint: Fingerprint,
    /// The hosts it trusts.
    pub peers: Peers,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Identity {
    /// The key is not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", &self.name)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

fn key_file(dir: &Path) -> PathBuf {
    dir.join("host.key")
}

fn certificate_file(dir: &Path) -> PathBuf {
    dir.join("host.pem")
}

impl Identity {
    /// Makes a key (Ed25519) and a certificate that it signs itself, `host.key` (mode 0600) and `host.pem` in `dir`.
    ///
    /// # Errors
    /// When there is a key already, or the files cannot be written.
    pub fn create(dir: &Path, name: &str) -> Result<Self, TlsError> {
        let (key_path, certificate_path) = (key_file(dir), certificate_file(dir));
        for path in [&key_path, &certificate_path] {
            if path.symlink_metadata().is_ok() {
                return Err(TlsError::KeyExists(path.clone()));
            }
        }
        DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(|source| TlsError::File {
            act: "make",
            path: dir.into(),
            source,
        })?;
        let generate = |error: rcgen::Error| TlsError::Generate(error.to_string());
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(generate)?;
        let mut subject = rcgen::CertificateParams::default();
        subject.distinguished_name = rcgen::DistinguishedName::new();
        subject.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = subject.self_signed(&key).map_err(generate)?;
        write_new(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        write_new(&certificate_path, certificate.pem().as_bytes(), 0o644)?;
        Self::load(dir)
    }

    /// Reads what [`Identity::create`] made, and whom this host trusts.
    ///
    /// # Errors
    /// When there is no key, others can read it, or a file does not hold what it should.
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        let (key_path, certificate_path) = (key_file(dir), certificate_file(dir));
        let meta = match std::fs::metadata(&key_path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(TlsError::NoKey(key_path));
            }
            Err(source) => return Err(TlsError::File { act: "read", path: key_path, source }),
        };
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TlsError::Exposed { path: key_path, mode });
        }
        let content = |path: &Path, what| {
            let path = path.to_owned();
            move |error: rustls::pki_types::pem::Error| TlsError::Content {
                path,
                what,
                why: error.to_string(),
            }
        };
        let key = PrivateKeyDer::from_pem_file(&key_path).map_err(content(&key_path, "private key"))?;
        let certificate = CertificateDer::from_pem_file(&certificate_path)
            .map_err(content(&certificate_path, "certificate"))?;
        let fingerprint = Fingerprint::of(&certificate)?;
        let name = peer_name();
        Ok(Self { name, fingerprint, peers: Peers::load(dir)?, certificate, key })
    }
}

/// The host's name, as far as it can be the name of a peer.
fn peer_name() -> String {
    let name = godwit_migration::host_name();
    if super::is_peer_name(&name) { name } else { "godwit-host".into() }
}

/// Writes a file that must not exist yet.
pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TlsError> {
    let failed = |source| TlsError::File { act: "write", path: path.into(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}
