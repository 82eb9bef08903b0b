//! What places are called: `s3://BUCKET[/PREFIX]` and `file:///ABSOLUTE/PATH`, and `#` with an image of it.

use std::fmt;
use std::path::{Component, PathBuf};
use std::str::FromStr;

use object_store::path::Path;

/// Fewest digits that name an image.
const FEWEST: usize = 4;
/// Digits of a whole digest.
const MOST: usize = 64;

/// A place, and perhaps one image of those in it. It has no secrets: those come from the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceName {
    /// Where.
    pub at: At,
    /// With what the digest of the image begins.
    pub image: Option<String>,
}

/// Where a place is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// In a bucket of a server that speaks S3.
    Bucket {
        /// The bucket.
        bucket: String,
        /// What the names of all objects begin with; empty, or without `/` at either end.
        prefix: String,
    },
    /// In a directory.
    Directory(PathBuf),
}

/// Text that names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` names no place: {why}")]
pub struct NotAPlace {
    text: String,
    why: &'static str,
}

impl PlaceName {
    /// Whether the text is meant to name a place, and not a path or another host.
    pub fn is_meant_by(text: &str) -> bool {
        text.starts_with("s3://") || text.starts_with("file://")
    }

    /// The place itself, without the image.
    pub fn whole(&self) -> PlaceName {
        PlaceName { at: self.at.clone(), image: None }
    }
}

impl FromStr for PlaceName {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        let wrong = |why| NotAPlace { text: text.to_owned(), why };
        let (place, image) = match text.rsplit_once('#') {
            Some((place, image)) => (place, Some(image.to_owned())),
            None => (text, None),
        };
        let is_hexadecimal = |image: &String| {
            (FEWEST..=MOST).contains(&image.len())
                && image.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        if image.as_ref().is_some_and(|image| !is_hexadecimal(image)) {
            return Err(wrong("behind `#` stands what the image's digest begins with, four digits at least"));
        }
        let at = match (place.strip_prefix("s3://"), place.strip_prefix("file://")) {
            (Some(rest), _) => bucket(rest).map_err(wrong)?,
            (_, Some(path)) => directory(path.into()).map_err(wrong)?,
            _ => return Err(wrong("write `s3://BUCKET/PREFIX` or `file:///ABSOLUTE/PATH`")),
        };
        Ok(PlaceName { at, image })
    }
}

fn bucket(rest: &str) -> Result<At, &'static str> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_plain) {
        return Err("a bucket has 3 to 63 lower-case letters, digits, `.` and `-`");
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.=+@/".contains(&byte);
    match Path::parse(prefix) {
        Ok(path) if path.as_ref() == prefix && prefix.bytes().all(is_safe) => {
            Ok(At::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
        }
        _ => Err(
            "the prefix has a part that is empty, `.` or `..`, or a character that not every server takes",
        ),
    }
}

fn directory(path: PathBuf) -> Result<At, &'static str> {
    let is_plain = |part: Component| matches!(part, Component::RootDir | Component::Normal(_));
    match path.is_absolute() && path.components().all(is_plain) && path.parent().is_some() {
        true => Ok(At::Directory(path.components().collect())),
        false => Err("`file://` needs an absolute path without `..`, as `file:///srv/checkpoints`"),
    }
}

impl fmt::Display for PlaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            At::Bucket { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}")?,
            At::Bucket { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}")?,
            At::Directory(path) => write!(f, "file://{}", path.display())?,
        }
        self.image.iter().try_for_each(|image| write!(f, "#{image}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_as_it_is_read() {
        for text in [
            "s3://bucket",
            "s3://my-bucket.x/a/b",
            "file:///srv/x",
            "s3://bucket/a#12ab",
            "file:///srv/x#0000",
        ] {
            assert_eq!(text.parse::<PlaceName>().unwrap().to_string(), text);
        }
        assert_eq!("s3://bucket/a/".parse::<PlaceName>().unwrap().to_string(), "s3://bucket/a");
        let of_an_image: PlaceName = "s3://bucket/a#12ab".parse().unwrap();
        assert_eq!(of_an_image.whole(), "s3://bucket/a".parse().unwrap());
    }

    #[test]
    fn what_could_mean_another_place_is_refused() {
        for text in [
            "",
            "/srv",
            "s3:/bucket",
            "s3://",
            "s3://ab",
            "s3://Bucket",
            "s3://key:secret@bucket/a",
            "s3://bucket//a",
            "s3://bucket/a/../b",
            "s3://bucket/a?b",
            "s3://bucket/a#",
            "s3://bucket/a#xyzw",
            "file://srv",
            "file://host/srv",
            "file:///",
            "file:///srv/../etc",
            "https://bucket/a",
        ] {
            assert!(text.parse::<PlaceName>().is_err(), "{text}");
        }
    }
}
