//! The buckets of a directory, as s3s-fs keeps them, and besides which uploads in parts were begun and not ended: s3s-fs has no listing of
//! them, and notes in `.upload-ID.json` only who has begun one. Beside it is `.upload-ID.of` with bucket and key. When it was begun is what
//! `.upload-ID.json` says by its last change, so a test makes it older as it makes an object older.
//!
//! An upload that is not known, or not any more, is told so as S3 does (404 `NoSuchUpload`); s3s-fs says 403.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;

use async_trait::async_trait;
use s3s::dto::*;
use s3s::{S3, S3Error, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

/// How many uploads an answer names at most: few, so that tests see that there are more.
const PAGE: usize = 2;

/// See the [module](self).
#[derive(Debug)]
pub struct Files {
    inner: FileSystem,
    directory: PathBuf,
}

/// An upload that was begun: its key, the server's name for it, and when that was.
type Begun = (String, String, Timestamp);

impl Files {
    /// Of the buckets in a directory.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn new(directory: &str) -> Result<Files, String> {
        let inner = FileSystem::new(directory).map_err(|error| format!("`{directory}`: {error:?}"))?;
        Ok(Files { inner, directory: directory.into() })
    }

    fn note(&self, upload: &str, kind: &str) -> PathBuf {
        self.directory.join(format!(".upload-{upload}.{kind}"))
    }

    /// That it was begun and not ended.
    fn know(&self, upload: &str) -> S3Result<()> {
        let is_name = upload.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        match is_name && self.note(upload, "json").exists() {
            true => Ok(()),
            false => Err(s3_error!(NoSuchUpload)),
        }
    }

    /// What was begun in a bucket, in the order of a listing.
    fn begun(&self, bucket: &str) -> io::Result<Vec<Begun>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let upload = name.strip_prefix(".upload-").and_then(|name| name.strip_suffix(".of"));
            let Some(upload) = upload else { continue };
            // one that ends meanwhile has none any more
            let Ok(meta) = self.note(upload, "json").metadata() else { continue };
            let of = std::fs::read_to_string(self.note(upload, "of"))?;
            if let Some(key) = of.strip_prefix(bucket).and_then(|rest| rest.strip_prefix('\n')) {
                found.push((key.to_owned(), upload.to_owned(), meta.modified()?.into()));
            }
        }
        found.sort_by(|one, other| (&one.0, &one.1).cmp(&(&other.0, &other.1)));
        Ok(found)
    }
}

/// What s3s-fs does by itself, in the words that `async_trait` makes of an `async fn`.
macro_rules! as_it_is {
    ($($call:ident: $input:ty => $output:ty;)*) => {
        $(fn $call<'a, 'f>(
            &'a self,
            request: S3Request<$input>,
        ) -> Pin<Box<dyn Future<Output = S3Result<S3Response<$output>>> + Send + 'f>>
        where
            'a: 'f,
            Self: 'f,
        {
            self.inner.$call(request)
        })*
    };
}

#[async_trait]
impl S3 for Files {
    as_it_is! {
        head_bucket: HeadBucketInput => HeadBucketOutput;
        get_object: GetObjectInput => GetObjectOutput;
        head_object: HeadObjectInput => HeadObjectOutput;
        put_object: PutObjectInput => PutObjectOutput;
        delete_object: DeleteObjectInput => DeleteObjectOutput;
        list_objects_v2: ListObjectsV2Input => ListObjectsV2Output;
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let of = format!("{}\n{}", request.input.bucket, request.input.key);
        let answer = self.inner.create_multipart_upload(request).await?;
        let upload = answer.output.upload_id.as_deref().unwrap_or_default();
        std::fs::write(self.note(upload, "of"), of).map_err(S3Error::internal_error)?;
        Ok(answer)
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        self.know(&request.input.upload_id)?;
        self.inner.upload_part(request).await
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.know(&request.input.upload_id)?;
        let note = self.note(&request.input.upload_id, "of");
        let answer = self.inner.complete_multipart_upload(request).await?;
        std::fs::remove_file(note).map_err(S3Error::internal_error)?;
        Ok(answer)
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.know(&request.input.upload_id)?;
        let note = self.note(&request.input.upload_id, "of");
        let answer = self.inner.abort_multipart_upload(request).await?;
        std::fs::remove_file(note).map_err(S3Error::internal_error)?;
        Ok(answer)
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let begun = self.begun(&request.input.bucket).map_err(S3Error::internal_error)?;
        Ok(S3Response::new(page(request.input, begun)))
    }
}

/// What is behind the markers, of the keys that are asked for
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html>).
fn page(input: ListMultipartUploadsInput, begun: Vec<Begun>) -> ListMultipartUploadsOutput {
    let prefix = input.prefix.clone().unwrap_or_default();
    let is_behind = |(key, upload, _): &Begun| match (&input.key_marker, &input.upload_id_marker) {
        (None, _) => true,
        (Some(marker), None) => key > marker,
        (Some(marker), Some(id)) => (key, upload) > (marker, id),
    };
    let mut found: Vec<Begun> =
        begun.into_iter().filter(|begun| begun.0.starts_with(&prefix) && is_behind(begun)).collect();
    let has_more = found.len() > PAGE;
    found.truncate(PAGE);
    let last = found.last().filter(|_| has_more).cloned();
    let upload = |(key, upload_id, initiated): Begun| MultipartUpload {
        key: Some(key),
        upload_id: Some(upload_id),
        initiated: Some(initiated),
        ..Default::default()
    };
    ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        prefix: input.prefix,
        key_marker: input.key_marker,
        upload_id_marker: input.upload_id_marker,
        next_key_marker: last.clone().map(|last| last.0),
        next_upload_id_marker: last.map(|last| last.1),
        max_uploads: Some(PAGE as i32),
        is_truncated: Some(has_more),
        uploads: Some(found.into_iter().map(upload).collect()),
        ..Default::default()
    }
}
