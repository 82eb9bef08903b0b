//! What names the content of the image that a container was made of, so that containers of one image are known as such on every host.
//!
//! Of podman and docker that is the digest of the image's configuration (OCI image-spec, "ImageID"), the same for both. A bundle of runc or crun
//! does not say what image it was unpacked from: none of the annotations that image-spec has a tool write (`org.opencontainers.image.*`,
//! "Conversion to OCI Runtime Configuration") is a digest of the image. There whoever made the bundle can note one.

use std::collections::BTreeMap;

/// The annotation by which a bundle of runc or crun says of what image it is.
pub const IMAGE_NOTE: &str = "godwit.image";
/// Longest, bytes.
const LONGEST: usize = 128;

/// Whether a text can name an image: letters, digits and `._:@+-`.
pub fn is_image_id(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:@+-".contains(&byte))
}

/// From the id that podman (`HEX`) or docker (`sha256:HEX`) calls it by.
pub fn engine_image_id(id: &str) -> Option<String> {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    let is_digest = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then(|| format!("sha256:{}", hex.to_ascii_lowercase()))
}

/// From what was noted for godwit.
pub(crate) fn of_note(annotations: &BTreeMap<String, String>) -> Option<String> {
    annotations.get(IMAGE_NOTE).filter(|note| is_image_id(note)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podman_and_docker_call_an_image_by_the_same_id() {
        let hex = "1f".repeat(32);
        assert_eq!(engine_image_id(&hex), Some(format!("sha256:{hex}")));
        assert_eq!(engine_image_id(&format!("sha256:{hex}")), engine_image_id(&hex));
        for odd in ["", "redis:7", "sha256:", &hex[1..], &format!("sha512:{hex}")] {
            assert_eq!(engine_image_id(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_note_that_could_be_something_else_is_none() {
        let noted = |note: &str| of_note(&BTreeMap::from([(IMAGE_NOTE.to_owned(), note.to_owned())]));
        assert_eq!(noted("redis:7.2"), Some("redis:7.2".to_owned()));
        for odd in ["", "a/b", "a b", "a\n", &"x".repeat(200)] {
            assert_eq!(noted(odd), None, "{odd}");
        }
        assert_eq!(of_note(&BTreeMap::new()), None);
    }
}
