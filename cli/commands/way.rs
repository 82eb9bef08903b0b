//! The way to another host: directly, or by way of a place that both can reach.

use super::object_storage;
use godwit_migration::{Cancel, Failure, FailureKind};
use godwit_object_storage::{PlaceError, PlaceName, Post};
use godwit_transfer::tls::{self, Identity, TlsError, config_dir};
use godwit_transfer::{Address, Transport, connect};
use std::fmt;
use std::io;
use std::path::Path;

/// How another host is reached. Written `ADDRESS`, or `ADDRESS via PLACE`: so journals remember it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Who; over a place only the name in it counts.
    pub address: Address,
    /// The place that carries what is said.
    pub via: Option<PlaceName>,
}

/// A way that is open, for as long as it is used.
pub struct OpenWay {
    way: Way,
    post: Option<Post>,
}

/// Why a host is not reached.
#[derive(Debug)]
pub enum NotReached {
    /// The place says no.
    Place(PlaceError),
    /// It does not answer, or is somebody else.
    Other(io::Error),
}

/// How a destination is written down that is reached by way of a place.
pub fn written(destination: &str, via: Option<&PlaceName>) -> String {
    match via {
        Some(place) => format!("{destination} via {place}"),
        None => destination.to_owned(),
    }
}

impl Way {
    /// Of a destination as a user wrote it, and a place.
    ///
    /// # Errors
    /// When it is no address, or one to which no place leads.
    pub fn new(destination: &str, via: Option<PlaceName>) -> Result<Self, Failure> {
        let address: Address =
            destination.parse().map_err(|error| Failure::new(FailureKind::Usage, format!("{error}")))?;
        if let Some(place) = &via
            && !matches!(address, Address::Tls { .. })
        {
            let why = format!("`{address}` cannot be reached by way of `{place}`: only `tls://NAME` can");
            return Err(Failure::new(FailureKind::Usage, why).hint(
                "the place sees what is said unless both hosts have keys and trust each other: `godwit keys`",
            ));
        }
        Ok(Self { address, via })
    }

    /// Of what [`written`] gave.
    ///
    /// # Errors
    /// As [`Way::new`].
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let Some((destination, place)) = text.split_once(" via ") else { return Self::new(text, None) };
        let place = place.parse().map_err(|error| Failure::new(FailureKind::Usage, format!("{error}")))?;
        Self::new(destination, Some(place))
    }

    /// Opens it; nobody is called yet. Once `cancel` is raised nobody is called over a place any more.
    ///
    /// # Errors
    /// When the environment says nothing of the place that can be used.
    pub fn open(self, cancel: &Cancel) -> Result<OpenWay, Failure> {
        let open = |place| {
            Post::open(place, cancel.clone()).map_err(|error| {
                object_storage::failure(&format!("`{place}` cannot be used"), &error, Path::new(""))
            })
        };
        let post = self.via.as_ref().map(open).transpose()?;
        Ok(OpenWay { way: self, post })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.address, &self.via) {
            // a port says nothing there
            (Address::Tls { name, host, .. }, Some(place)) => {
                write!(f, "tls://{} via {place}", name.as_ref().unwrap_or(host))
            }
            (address, _) => write!(f, "{address}"),
        }
    }
}

impl OpenWay {
    /// Who is at its end.
    pub fn address(&self) -> &Address {
        &self.way.address
    }

    /// Calls who is at its end. `remote_command` is what ssh runs there.
    ///
    /// # Errors
    /// When nobody answers, or somebody else.
    pub fn connect(&self, remote_command: &str) -> Result<Box<dyn Transport>, NotReached> {
        let other = |error: TlsError| NotReached::Other(error.into());
        let Some(post) = &self.post else {
            return connect(&self.way.address, remote_command).map_err(NotReached::Other);
        };
        let Address::Tls { name, host, .. } = &self.way.address else {
            return Err(NotReached::Other(io::ErrorKind::InvalidInput.into()));
        };
        let expected = name.as_ref().unwrap_or(host);
        let identity = Identity::load(&config_dir()).map_err(other)?;
        let key = identity.peers.key_of(expected).ok_or_else(|| other(TlsError::NoPeer(expected.clone())))?;
        let exchange = post.call(key).map_err(|error| match error {
            PlaceError::Silent(_) => NotReached::Other(io::Error::new(io::ErrorKind::TimedOut, error)),
            error => NotReached::Place(error),
        })?;
        let stream = tls::call(exchange, &self.way.to_string(), expected, &identity);
        Ok(Box::new(stream.map_err(NotReached::Other)?))
    }

    /// Makes a further connection; none where there is only one, which has several letters on their way at once.
    pub fn dial(&self, remote_command: &str) -> Option<impl Fn() -> io::Result<Box<dyn Transport>>> {
        self.post.is_none().then_some(|| connect(&self.way.address, remote_command))
    }
}

impl fmt::Display for OpenWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.way, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_remembered_as_it_is_written() {
        let place: PlaceName = "s3://bucket/a".parse().unwrap();
        for destination in ["tls://rack2", "tls://rack2@10.0.0.2:7701"] {
            let text = written(destination, Some(&place));
            let way = Way::parse(&text).unwrap();
            assert_eq!(way, Way::new(destination, Some(place.clone())).unwrap());
            assert_eq!(way.to_string(), "tls://rack2 via s3://bucket/a");
        }
        let direct = Way::parse("ssh://rack2").unwrap();
        assert_eq!((direct.to_string().as_str(), &direct.via), ("ssh://rack2", &None));
        assert_eq!(written("ssh://rack2", None), "ssh://rack2");
    }

    #[test]
    fn only_those_who_prove_who_they_are_speak_over_a_place() {
        for text in ["ssh://rack2", "tcp://rack2:1", "unix:///x"] {
            let refused = Way::parse(&format!("{text} via s3://bucket/a")).unwrap_err();
            assert_eq!(refused.kind, FailureKind::Usage);
            assert!(refused.message.contains("only `tls://NAME` can"), "{refused}");
        }
        for text in ["tls://rack2 via ", "tls://rack2 via x", "via s3://bucket/a", "tls://a via s3://b"] {
            assert!(Way::parse(text).is_err(), "{text}");
        }
    }
}
