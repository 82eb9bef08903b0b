//! `godwit-s3-server DIRECTORY ADDRESS [PROOF]`: speaks S3 for the buckets in a directory, to whoever has the keys of `AWS_ACCESS_KEY_ID`
//! and `AWS_SECRET_ACCESS_KEY`; over TLS with a file that has its certificate and key in PEM. It says its URL on standard output, and
//! ends with the pipe that is its standard input, if it is one. For tests.

mod files;

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use s3s::S3Error;
use s3s::auth::SimpleAuth;
use s3s::service::{S3ServiceBuilder, SharedS3Service};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use files::Files;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(directory), Some(address)) = (words.next(), words.next()) else {
        return Err("write: godwit-s3-server DIRECTORY ADDRESS [PROOF]".into());
    };
    let tls = words.next().map(|proof| acceptor(Path::new(&proof))).transpose()?;
    let mut service = S3ServiceBuilder::new(Files::new(&directory)?);
    let key = std::env::var("AWS_ACCESS_KEY_ID")?;
    service.set_auth(SimpleAuth::from_single(key, std::env::var("AWS_SECRET_ACCESS_KEY")?));
    let service = service.build().into_shared();
    // whoever has started it is gone, however it ended
    if std::fs::metadata("/proc/self/fd/0").is_ok_and(|input| input.file_type().is_fifo()) {
        std::thread::spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(0);
        });
    }
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        writeln!(std::io::stdout(), "{scheme}://{}", listener.local_addr()?)?;
        loop {
            let (connection, _) = listener.accept().await?;
            let service = service.clone();
            let service = service_fn(move |request| {
                let asked = tokio::spawn(answer(service.clone(), request));
                async move { asked.await.unwrap_or_else(|error| Err(S3Error::internal_error(error))) }
            });
            let tls = tls.clone();
            // a client that breaks off, or does not believe the certificate, is what tests are about
            tokio::spawn(async move {
                let http = http1::Builder::new();
                match tls {
                    None => http.serve_connection(TokioIo::new(connection), service).await.ok(),
                    Some(tls) => {
                        let connection = tls.accept(connection).await.ok()?;
                        http.serve_connection(TokioIo::new(connection), service).await.ok()
                    }
                }
            });
        }
    })
}

/// What speaks TLS with the certificate and the key of a file.
fn acceptor(proof: &Path) -> Result<TlsAcceptor, Box<dyn Error>> {
    let certificates = CertificateDer::pem_file_iter(proof)?.collect::<Result<Vec<_>, _>>()?;
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, PrivateKeyDer::from_pem_file(proof)?)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The whole answer. What was asked for is done to its end, whether the client waits for it or not.
async fn answer(
    service: SharedS3Service,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, S3Error> {
    let (head, body) = service.call(request).await?.into_parts();
    let body = body.collect().await.map_err(|error| S3Error::internal_error(std::io::Error::other(error)))?;
    Ok(Response::from_parts(head, Full::new(body.to_bytes())))
}
