//! `godwit-s3-server DIRECTORY ADDRESS`: speaks S3 for the buckets in a directory, to whoever has the keys of `AWS_ACCESS_KEY_ID` and
//! `AWS_SECRET_ACCESS_KEY`. It says its URL on standard output, and ends with the pipe that is its standard input, if it is one.
//! For tests.

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use s3s::S3Error;
use s3s::auth::SimpleAuth;
use s3s::service::{S3ServiceBuilder, SharedS3Service};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(directory), Some(address)) = (words.next(), words.next()) else {
        return Err("write: godwit-s3-server DIRECTORY ADDRESS".into());
    };
    let files = FileSystem::new(&directory).map_err(|error| format!("`{directory}`: {error:?}"))?;
    let mut service = S3ServiceBuilder::new(files);
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
        writeln!(std::io::stdout(), "http://{}", listener.local_addr()?)?;
        loop {
            let (connection, _) = listener.accept().await?;
            let service = service.clone();
            let service = service_fn(move |request| {
                let asked = tokio::spawn(answer(service.clone(), request));
                async move { asked.await.unwrap_or_else(|error| Err(S3Error::internal_error(error))) }
            });
            // a client that breaks off is what tests are about
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
        }
    })
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
