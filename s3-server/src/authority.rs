//! An authority of a test's own, which signs what a server proves with who it is.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

/// An authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, PEM.
    pub certificate: String,
}

impl Authority {
    /// A new one of this name.
    ///
    /// # Panics
    /// When there is no randomness.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.self_signed(&key).expect("it signs itself").pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// What a server at this name has that takes itself for an authority, as `openssl req -x509` makes it: certificate and key, PEM.
    ///
    /// # Panics
    /// When that is no name.
    pub fn as_server(name: &str) -> String {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("it is a name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key can be made");
        params.self_signed(&key).expect("it signs itself").pem() + &key.serialize_pem()
    }

    /// What a server at this name or address proves with who it is: certificate and key, PEM.
    ///
    /// # Panics
    /// When that is no name.
    pub fn sign(&self, name: &str) -> String {
        self.sign_until(name, 2100)
    }

    /// The same, and it expires with the beginning of a year.
    ///
    /// # Panics
    /// When that is no name.
    pub fn sign_until(&self, name: &str, year: i32) -> String {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("it is a name");
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.issuer).expect("it can be signed");
        certificate.pem() + &key.serialize_pem()
    }
}
