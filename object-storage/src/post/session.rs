//! Where the letters of one exchange lie: `calls/DESTINATION/SESSION.to.NUMBER` from who called, and `….fro.NUMBER` back.

use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt;
use godwit_migration::MigrationId;
use object_store::{ObjectStoreExt, PutPayload};

use super::letter::{HEAD, Letter, MOST};
use crate::PlaceError;
use crate::error::Refusal;
use crate::place::Objects;

/// How long a letter may lie there: an older one was left by somebody who is dead. An exchange reads its letters at once.
pub const LEFTOVER: Duration = Duration::from_secs(24 * 3600);

/// Which way letters go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From who called.
    To,
    /// From who answered.
    Fro,
}

impl Way {
    fn word(self) -> &'static str {
        match self {
            Way::To => "to",
            Way::Fro => "fro",
        }
    }
}

/// All that is for one destination.
#[derive(Clone)]
pub(crate) struct Directory {
    pub objects: Objects,
    /// `calls/DESTINATION`.
    pub name: String,
}

/// One exchange.
#[derive(Clone)]
pub(crate) struct Session {
    pub directory: Directory,
    pub id: String,
}

/// The letters of an exchange in one direction.
#[derive(Clone)]
pub(crate) struct Lane {
    objects: Objects,
    /// All but the number.
    name: String,
}

/// What a letter is called says: of which session, which way, which number.
fn understand(name: &str) -> Option<(String, Way, u64)> {
    let (session, rest) = name.split_once('.')?;
    let (way, number) = rest.split_once('.')?;
    let way = [Way::To, Way::Fro].into_iter().find(|known| known.word() == way)?;
    let id: MigrationId = session.parse().ok()?;
    let value = u64::from_str_radix(number, 16).ok()?;
    (format!("{value:016x}") == number).then(|| (id.to_string(), way, value))
}

/// A letter that lies there.
pub(crate) struct Found {
    pub session: String,
    pub way: Way,
    pub number: u64,
    /// How long it has been there, by this host's clock.
    age: Duration,
    path: object_store::path::Path,
}

impl Directory {
    /// The letters that lie there. Whatever is no letter is left out.
    pub async fn list(&self) -> Result<Vec<Found>, PlaceError> {
        let path = self.objects.path(&self.name);
        let listed = self.objects.store().list(Some(&path)).try_collect::<Vec<_>>().await;
        let listed = match listed.map_err(|error| not_listed(error, &path)) {
            Err(error) if error.is_missing() && self.objects.is_directory() => Vec::new(),
            listed => listed?,
        };
        let now = SystemTime::now();
        let found = |object: object_store::ObjectMeta| {
            let name = object.location.as_ref().strip_prefix(path.as_ref())?.strip_prefix('/')?;
            let (session, way, number) = understand(name)?;
            let age = now.duration_since(object.last_modified.into()).unwrap_or_default();
            Some(Found { session, way, number, age, path: object.location })
        };
        Ok(listed.into_iter().filter_map(found).collect())
    }

    /// Takes away what the dead have left.
    pub async fn sweep(&self, found: &[Found]) -> Result<(), PlaceError> {
        for letter in found.iter().filter(|letter| letter.age > LEFTOVER) {
            tracing::info!(letter = %letter.path, "left by somebody who is dead: it goes");
            self.objects.delete(&letter.path).await?;
        }
        Ok(())
    }
}

/// Why a place cannot be listed. That there is no such bucket is known by what the server says alone: for requests that name no object it
/// is no error of its own.
fn not_listed(error: object_store::Error, path: &object_store::path::Path) -> PlaceError {
    let has_no_bucket = error.to_string().contains("NoSuchBucket");
    let mut error = PlaceError::object("list", path)(error);
    if let PlaceError::Object { refusal, .. } = &mut error
        && has_no_bucket
    {
        *refusal = Refusal::Missing;
    }
    error
}

impl Session {
    /// A session of its own.
    pub fn new(directory: Directory) -> Result<Self, PlaceError> {
        let id = MigrationId::generate().map_err(|error| PlaceError::Unusable(error.to_string()))?;
        Ok(Self { directory, id: id.to_string() })
    }

    /// The letters of one direction.
    pub fn lane(&self, way: Way) -> Lane {
        let name = format!("{}/{}.{}", self.directory.name, self.id, way.word());
        Lane { objects: self.directory.objects.clone(), name }
    }

    /// Takes away all that is left of it.
    pub async fn clear(&self) -> Result<(), PlaceError> {
        for letter in self.directory.list().await?.iter().filter(|letter| letter.session == self.id) {
            self.directory.objects.delete(&letter.path).await?;
        }
        Ok(())
    }
}

impl Lane {
    fn path(&self, number: u64) -> object_store::path::Path {
        self.objects.path(&format!("{}.{number:016x}", self.name))
    }

    pub async fn put(&self, number: u64, letter: &Letter) -> Result<(), PlaceError> {
        let path = self.path(number);
        let put = self.objects.store().put(&path, PutPayload::from(letter.encode())).await;
        put.map(drop).map_err(PlaceError::object("write", &path))
    }

    /// The letter of this number, if it is there.
    pub async fn get(&self, number: u64) -> Result<Option<Letter>, PlaceError> {
        let path = self.path(number);
        match self.objects.get_at_most(path.clone(), (HEAD + MOST) as u64).await {
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
            Ok(bytes) => Letter::decode(bytes)
                .map(Some)
                .map_err(|why| PlaceError::Damaged { object: path.to_string(), why: why.into() }),
        }
    }

    pub async fn delete(&self, number: u64) -> Result<(), PlaceError> {
        self.objects.delete(&self.path(number)).await
    }

    /// Whether the other side has taken it.
    pub async fn is_taken(&self, number: u64) -> Result<bool, PlaceError> {
        let path = self.path(number);
        match self.objects.store().head(&path).await.map_err(PlaceError::object("look at", &path)) {
            Err(error) if error.is_missing() => Ok(true),
            Err(error) => Err(error),
            Ok(_) => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_called_like_a_letter_is_one() {
        let id = "01m7ydqxqzmwddpq8wywbxhyh8";
        assert_eq!(understand(&format!("{id}.to.000000000000001f")), Some((id.into(), Way::To, 31)));
        assert_eq!(understand(&format!("{id}.fro.0000000000000000")), Some((id.into(), Way::Fro, 0)));
        for name in [
            "",
            "x.to.0000000000000000",
            &format!("{id}.to.0"),
            &format!("{id}.to.+000000000000001"),
            &format!("{id}.to.000000000000001F"),
            &format!("{id}.at.0000000000000000"),
            &format!("{id}.to.0000000000000000.x"),
            &format!("{id}/to.0000000000000000"),
        ] {
            assert_eq!(understand(name), None, "{name}");
        }
    }
}
