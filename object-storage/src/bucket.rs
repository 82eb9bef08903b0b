//! A bucket as the environment has it: where it is, who asks, and whom this host believes that it is the server.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::client::{HttpConnector, ReqwestConnector};
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::PlaceError;
use crate::place::unusable;
use crate::unfinished::Asker;

/// How often a request is made again that failed, or was not answered. About six seconds in all.
pub(crate) const RETRIES: usize = 5;
/// How long one may take: a part on a slow line.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(300);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Where an own server is.
const ENDPOINTS: [&str; 3] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
/// The file with certificates of the authorities that count instead of the host's, as Amazon's own programs call it
/// (<https://docs.aws.amazon.com/sdkref/latest/guide/feature-gen-config.html>).
const AUTHORITIES: &str = "AWS_CA_BUNDLE";

/// Variables `AWS_…` by their names.
pub type Environment = BTreeMap<String, String>;

/// What this process's environment says of object storage.
pub(crate) fn environment() -> Environment {
    let known = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    known.filter(|(name, _)| name.starts_with("AWS_")).collect()
}

/// Opens a bucket, also for requests that object_store does not have; nothing is asked of it yet. What the environment says of certificates
/// that need not be right, or of plain HTTP to an `https://` endpoint, does not count.
///
/// # Errors
/// When the environment says nothing that can be used.
pub(crate) fn open_bucket(environment: &Environment, bucket: &str) -> Result<Asker, PlaceError> {
    // a second one finds the first
    let _ = rustls::crypto::ring::default_provider().install_default();
    let endpoint = ENDPOINTS.iter().find_map(|name| environment.get(*name));
    let is_plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let authorities = authorities(environment)?;
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(3),
            base: 2.0,
        },
        max_retries: RETRIES,
        ..RetryConfig::default()
    };
    // whoever has written `http://` wants it; such a host may know no authority at all
    let client = ClientOptions::new()
        .with_timeout(REQUEST_LIMIT)
        .with_connect_timeout(CONNECT_LIMIT)
        .with_allow_http(is_plain)
        .with_no_system_certificates(is_plain || !authorities.is_empty());
    let client = authorities.into_iter().fold(client, ClientOptions::with_root_certificate);
    let known =
        environment.iter().filter_map(|(name, value)| Some((name.to_lowercase().parse().ok()?, value)));
    let http = ReqwestConnector::default().connect(&client).map_err(|error| unusable(&error))?;
    // single objects are removed one by one: not every server knows the request for many
    let bucket = known
        .fold(AmazonS3Builder::new(), |builder, (key, value)| builder.with_config(key, value))
        .with_client_options(client)
        .with_retry(retry)
        .with_bucket_name(bucket)
        .with_disable_bulk_delete(true)
        .build()
        .map_err(|error| unusable(&error))?;
    Ok(Asker { bucket: Arc::new(bucket), http })
}

/// The authorities that count instead of the host's; none where the environment names no file.
fn authorities(environment: &Environment) -> Result<Vec<Certificate>, PlaceError> {
    let Some(path) = environment.get(AUTHORITIES).filter(|path| !path.is_empty()) else {
        return Ok(Vec::new());
    };
    let unfit = |why: String| PlaceError::Unusable(format!("{AUTHORITIES} names `{path}`, {why}"));
    let pem = fs::read(path).map_err(|error| unfit(format!("which cannot be read: {error}")))?;
    let mut found = Vec::new();
    for der in CertificateDer::pem_slice_iter(&pem) {
        let der = der.map_err(|error| unfit(format!("which is not PEM: {error}")))?;
        // whoever uses it later does not say which file it is from
        let known = RootCertStore::empty().add(der.clone());
        known.map_err(|error| unfit(format!("in which something is no certificate: {error}")))?;
        found.push(Certificate::from_der(&der).map_err(|error| unusable(&error))?);
    }
    if found.is_empty() {
        return Err(unfit("in which there is no certificate (PEM)".into()));
    }
    Ok(found)
}
