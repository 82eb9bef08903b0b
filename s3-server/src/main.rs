//! `godwit-s3-server DIRECTORY ADDRESS`: speaks S3 for the buckets in a directory, to whoever has the keys of `AWS_ACCESS_KEY_ID` and
//! `AWS_SECRET_ACCESS_KEY`. It says its URL on standard output, and ends with its standard input. For tests.

use std::error::Error;
use std::io::{Read, Write};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
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
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        writeln!(std::io::stdout(), "http://{}", listener.local_addr()?)?;
        loop {
            let (connection, _) = listener.accept().await?;
            let service = service.clone();
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                // a client that breaks off is what tests are about
                let _ = server.serve_connection(TokioIo::new(connection), service).await;
            });
        }
    })
}
