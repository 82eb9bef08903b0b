//! What a host's key is called.

use super::TlsError;
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "sha256:";

/// SHA-256 of the SubjectPublicKeyInfo (RFC 5280, 4.1.2.7) of a host's certificate, so that it outlives a new certificate of
/// the same key. Written `sha256:` and 64 hexadecimal digits: what
/// `openssl x509 -in host.pem -noout -pubkey | openssl pkey -pubin -outform der | sha256sum` prints.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

/// Said when a text is no fingerprint.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a fingerprint: `sha256:` and 64 hexadecimal digits, as `godwit keys show` prints them")]
pub struct InvalidFingerprint(String);

impl Fingerprint {
    /// Of the key in a certificate.
    ///
    /// # Errors
    /// When it is no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let parsed =
            rustls::server::ParsedCertificate::try_from(certificate).map_err(TlsError::Certificate)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, &parsed.subject_public_key_info());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Ok(Self(bytes))
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let invalid = || InvalidFingerprint(text.chars().take(100).collect());
        let digits = text.strip_prefix(PREFIX).ok_or_else(invalid)?.as_bytes();
        let (pairs, []) = digits.as_chunks::<2>() else { return Err(invalid()) };
        let nibble = |digit: u8| (digit as char).to_digit(16).map(|nibble| nibble as u8);
        let mut bytes = [0; 32];
        if pairs.len() != bytes.len() {
            return Err(invalid());
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = nibble(*high).zip(nibble(*low)).map(|(high, low)| high << 4 | low).ok_or_else(invalid)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_and_written_the_same() {
        let text = format!("sha256:{}", "0123456789abcdef".repeat(4));
        assert_eq!(text.parse::<Fingerprint>().unwrap().to_string(), text);
        assert_eq!(text.to_uppercase().replace("SHA256", "sha256").parse::<Fingerprint>(), text.parse());
    }

    #[test]
    fn what_is_none_is_refused() {
        let whole = "ab".repeat(32);
        for text in [
            "",
            "sha256:",
            &whole,
            &format!("sha256:{}", &whole[1..]),
            &format!("sha256:{whole}a"),
            &format!("sha256:{whole}ab"),
            &format!("sha256:{}zz", &whole[2..]),
            &format!("sha256:{}\u{e9}", &whole[2..]),
        ] {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
    }
}
