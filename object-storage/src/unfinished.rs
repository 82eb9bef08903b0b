//! Uploads in parts that were begun in a bucket and not brought to an end, whichever host has begun them. No listing of objects shows them, and
//! object_store has no request for them: this one is ours, signed by it, and goes the way that its own go.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use godwit_store::Digest;
use object_store::aws::AmazonS3;
use object_store::client::{HttpClient, HttpError, HttpRequest, HttpRequestBody};
use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions, Signer};
use serde::Deserialize;

use crate::Place;
use crate::bucket::RETRIES;
use crate::error::{PlaceError, Refusal, one_line};
use crate::ledger::Begun;
use crate::place::{AT_ONCE, PACKS};
use crate::records::{GRACE, age};

/// How long what is signed counts: more than a server's clock differs from ours.
const SIGNED_FOR: Duration = Duration::from_secs(900);
/// Most bytes of an answer: a thousand uploads, each with the longest key.
const LARGEST: usize = 8 << 20;
/// Before a request is made again that failed.
const PAUSE: Duration = Duration::from_millis(500);

/// Who asks a bucket for them.
#[derive(Clone)]
pub(crate) struct Asker {
    /// Knows where the bucket is, and who asks.
    pub bucket: Arc<AmazonS3>,
    /// Believes whom the bucket's own requests believe.
    pub http: HttpClient,
}

/// Those of a place.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Unfinished {
    /// Begun so long ago that nobody brings them to an end any more.
    pub dead: Vec<Begun>,
    /// How many may still come to their end.
    pub young: u64,
}

impl Place {
    /// What was begun of its packs and not ended; none where there are no uploads in parts. `now`: by the place's clock, which dates
    /// uploads, too.
    pub(crate) fn unfinished(&self, now: SystemTime) -> Result<Unfinished, PlaceError> {
        let Some(asker) = self.asker() else { return Ok(Unfinished::default()) };
        let packs = self.objects().path(PACKS);
        let uploads = self.wait(asker.list(&packs))?;
        Ok(Unfinished::sort(&packs, uploads, now))
    }

    /// Lets go of such uploads, several at once; how many. One that has come to its end meanwhile is an object and stays.
    pub(crate) fn let_go(&self, dead: &[Begun]) -> Result<u64, PlaceError> {
        let Some(parts) = self.objects().parts else { return Ok(0) };
        let gone = stream::iter(dead).map(|(object, upload)| {
            let parts = parts.clone();
            async move {
                match parts.abort_multipart(&Path::from(object.as_str()), upload).await {
                    Ok(()) => Ok(1),
                    Err(object_store::Error::NotFound { .. }) => Ok(0),
                    Err(error) => {
                        tracing::warn!(%error, object, "an upload in parts is left over: the next collection takes it away");
                        Ok(0)
                    }
                }
            }
        });
        self.wait(gone.buffer_unordered(AT_ONCE).try_fold(0, |sum, one| async move { Ok(sum + one) }))
    }
}

impl Unfinished {
    /// Only packs of ours count, and of those the ones that were begun a day ago.
    fn sort(packs: &Path, uploads: Vec<Upload>, now: SystemTime) -> Unfinished {
        let mut sorted = Unfinished::default();
        for upload in uploads {
            let name = upload.key.strip_prefix(packs.as_ref()).and_then(|rest| rest.strip_prefix('/'));
            if name.is_none_or(|name| name.parse::<Digest>().is_err()) {
                continue;
            }
            match age(upload.initiated.into(), now) >= GRACE {
                true => sorted.dead.push((upload.key, upload.upload_id)),
                false => sorted.young += 1,
            }
        }
        sorted
    }
}

/// `ListMultipartUploadsResult`, by which alone an answer is known: a server that does not know the request may answer with another listing
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html>).
#[derive(Debug, Deserialize)]
enum Answer {
    ListMultipartUploadsResult(Page),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
    #[serde(default, rename = "Upload")]
    uploads: Vec<Upload>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
    #[serde(deserialize_with = "date")]
    initiated: DateTime<Utc>,
}

fn date<'de, D: serde::Deserializer<'de>>(from: D) -> Result<DateTime<Utc>, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
}

/// What S3 says when it says no.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct No {
    code: String,
    message: String,
}

impl Asker {
    /// All that were begun below a path.
    async fn list(&self, below: &Path) -> Result<Vec<Upload>, PlaceError> {
        let (mut found, mut behind) = (Vec::new(), (String::new(), String::new()));
        loop {
            let mut query = vec![("uploads", String::new()), ("prefix", format!("{below}/"))];
            let markers = [("key-marker", behind.0.clone()), ("upload-id-marker", behind.1.clone())];
            query.extend(markers.into_iter().filter(|(_, marker)| !marker.is_empty()));
            let failed = |why: String| refused(below, Refusal::Failed, why);
            let bytes = self.get(below, query).await?;
            let text = std::str::from_utf8(&bytes).map_err(|error| failed(error.to_string()))?;
            let Answer::ListMultipartUploadsResult(page) = quick_xml::de::from_str(text)
                .map_err(|error| failed(format!("its answer is no such list: {error}")))?;
            found.extend(page.uploads);
            if !page.is_truncated {
                return Ok(found);
            }
            let next = (page.next_key_marker, page.next_upload_id_marker);
            // otherwise it would go on for ever
            if next == behind || next.0.is_empty() {
                return Err(failed("it says that there are more, and not where".into()));
            }
            behind = next;
        }
    }

    /// Asks the bucket itself; again where it fails, or says nothing.
    async fn get(&self, of: &Path, query: Vec<(&str, String)>) -> Result<Vec<u8>, PlaceError> {
        let options = SignedUrlOptions::new().with_query(query);
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.try_get(of, &options).await {
                Err(error) if error.is_passing && tries <= RETRIES => error,
                ended => return ended.map_err(|error| error.error),
            };
            tracing::debug!(error = %error.error, "again");
            tokio::time::sleep(PAUSE * tries as u32).await;
        }
    }

    async fn try_get(&self, of: &Path, options: &SignedUrlOptions) -> Result<Vec<u8>, Failed> {
        let failed = || PlaceError::object(LIST, of);
        let url = self.bucket.signed_url_opts(Method::GET, &Path::default(), SIGNED_FOR, options).await;
        let url = url.map_err(|error| Failed { error: failed()(error), is_passing: false })?;
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().map_err(|_| Failed {
            error: refused(of, Refusal::Failed, "its address is none".into()),
            is_passing: false,
        })?;
        let unheard = |error: HttpError| {
            let error = object_store::Error::Generic { store: "S3", source: Box::new(error) };
            Failed { error: failed()(error), is_passing: true }
        };
        let answer = self.http.execute(request).await.map_err(unheard)?;
        let status = answer.status();
        let (mut body, mut bytes) = (answer.into_body().bytes_stream(), Vec::new());
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece.map_err(unheard)?);
            if bytes.len() > LARGEST {
                let error = refused(of, Refusal::Failed, "its answer has no end".into());
                return Err(Failed { error, is_passing: false });
            }
        }
        if status.is_success() {
            return Ok(bytes);
        }
        let No { code, message } =
            quick_xml::de::from_str(&String::from_utf8_lossy(&bytes)).unwrap_or_default();
        let refusal = if matches!(status.as_u16(), 401 | 403) { Refusal::Denied } else { Refusal::Failed };
        // 501: it will never know that request
        let is_passing = matches!(status.as_u16(), 408 | 429 | 500 | 502..);
        Err(Failed {
            error: refused(of, refusal, one_line(&format!("{status} {code} {message}"))),
            is_passing,
        })
    }
}

const LIST: &str = "list the uploads in parts below";

/// A request that failed, and whether the next may not.
struct Failed {
    error: PlaceError,
    is_passing: bool,
}

fn refused(of: &Path, refusal: Refusal, why: String) -> PlaceError {
    PlaceError::Object { act: LIST, object: of.to_string(), why, refusal }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::open_bucket;
    use object_store::client::{HttpResponse, HttpService};
    use std::pin::Pin;
    use std::sync::Mutex;

    fn upload(key: &str, begun: SystemTime) -> Upload {
        Upload { key: key.into(), upload_id: "id".into(), initiated: begun.into() }
    }

    #[test]
    fn only_packs_of_this_place_that_were_begun_a_day_ago_by_its_clock_are_dead() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let digest = Digest::of(b"1");
        let ours = format!("a/b/packs/{digest}");
        let uploads = vec![
            upload(&ours, now - GRACE),
            upload(&ours, now - GRACE + Duration::from_secs(1)),
            upload(&ours, now + GRACE),
            upload(&format!("a/b/packs/deeper/{digest}"), now - 9 * GRACE),
            upload(&format!("a/b/packs{digest}"), now - 9 * GRACE),
            upload("a/b/packs/somebody's.iso", now - 9 * GRACE),
            upload("a/b/packs", now - 9 * GRACE),
        ];
        let sorted = Unfinished::sort(&Path::from("a/b/packs"), uploads, now);
        assert_eq!(sorted, Unfinished { dead: vec![(ours, "id".into())], young: 2 });
    }

    /// A server that has these answers, one after the other, and the last of them for ever.
    #[derive(Debug)]
    struct Says(Mutex<Vec<String>>, Arc<Mutex<Vec<String>>>);

    impl HttpService for Says {
        fn call<'a, 'f>(
            &'a self,
            request: HttpRequest,
        ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'f>>
        where
            'a: 'f,
            Self: 'f,
        {
            self.1.lock().unwrap().push(request.uri().to_string());
            let mut left = self.0.lock().unwrap();
            let said = if left.len() > 1 { left.remove(0) } else { left[0].clone() };
            Box::pin(async move { Ok(HttpResponse::new(said.into())) })
        }
    }

    /// What comes of such answers, and what was asked.
    fn listed(answers: &[String]) -> (Result<Vec<String>, String>, Vec<String>) {
        let keys = [
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_SESSION_TOKEN", "token"),
        ];
        let environment = keys.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut asker = open_bucket(&environment, "bucket").unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        asker.http = HttpClient::new(Says(Mutex::new(answers.to_vec()), asked.clone()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listed = runtime.block_on(asker.list(&Path::from("a/packs")));
        let asked = asked.lock().unwrap().clone();
        (
            listed
                .map(|found| found.into_iter().map(|one| one.upload_id).collect())
                .map_err(|e| e.to_string()),
            asked,
        )
    }

    fn page(upload: &str, next: &str) -> String {
        format!(
            "<ListMultipartUploadsResult><Upload><Key>a/packs/k</Key><UploadId>{upload}</UploadId>\
             <Initiated>2010-11-10T20:48:33.000Z</Initiated></Upload>\
             <IsTruncated>{}</IsTruncated>{next}</ListMultipartUploadsResult>",
            !next.is_empty()
        )
    }

    #[test]
    fn all_pages_are_read_and_none_that_leads_nowhere() {
        let more = "<NextKeyMarker>a/packs/k</NextKeyMarker><NextUploadIdMarker>one+</NextUploadIdMarker>";
        let (found, asked) = listed(&[page("one", more), page("two", "")]);
        assert_eq!(found.unwrap(), ["one", "two"]);
        assert!(asked[0].contains("/?uploads=&prefix=a%2Fpacks%2F&X-Amz-"), "{}", asked[0]);
        assert!(asked[0].contains("X-Amz-Security-Token=token"), "{}", asked[0]);
        assert!(
            asked[1].contains("&key-marker=a%2Fpacks%2Fk&upload-id-marker=one%2B&X-Amz-"),
            "{}",
            asked[1]
        );
        for nowhere in [more, "<NextUploadIdMarker>one</NextUploadIdMarker>"] {
            let (found, asked) = listed(&[page("one", nowhere)]);
            assert!(found.unwrap_err().ends_with("it says that there are more, and not where"));
            assert!(asked.len() <= 2, "{}", asked.len());
        }
        let (found, _) = listed(&["x".repeat(LARGEST + 1)]);
        assert!(found.unwrap_err().ends_with("its answer has no end"));
        let (found, _) = listed(&["<ListBucketResult></ListBucketResult>".into()]);
        assert!(found.unwrap_err().contains("its answer is no such list"));
    }

    #[test]
    fn an_answer_that_is_another_listing_is_none() {
        let read = |text: &str| quick_xml::de::from_str::<Answer>(text);
        let listing = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
            <ListMultipartUploadsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>b</Bucket>\
            <KeyMarker></KeyMarker><NextKeyMarker>k&amp;</NextKeyMarker><NextUploadIdMarker>2</NextUploadIdMarker>\
            <IsTruncated>true</IsTruncated>\
            <Upload><Key>k&amp;</Key><UploadId>1</UploadId><Owner><ID>o</ID></Owner><Initiated>2010-11-10T20:48:33.000Z</Initiated></Upload>\
            <CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>\
            <Upload><Key>k&amp;</Key><UploadId>2</UploadId><Initiated>2010-11-10T20:48:33Z</Initiated></Upload>\
            </ListMultipartUploadsResult>";
        let Answer::ListMultipartUploadsResult(page) = read(listing).unwrap();
        assert_eq!((page.is_truncated, &*page.next_key_marker, page.uploads.len()), (true, "k&", 2));
        assert_eq!(page.uploads[0].initiated.timestamp(), 1_289_422_113);
        for other in [
            "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
            "<Error><Code>No</Code></Error>",
            &listing.replace("2010", "once"),
            &listing[..listing.len() - 20],
            "{}",
            "",
        ] {
            assert!(read(other).is_err(), "{other}");
        }
    }
}
