//! Why an etcd could not be asked.

use std::path::PathBuf;

/// Nothing is known then: what was asked may have been done.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// No member has answered.
    #[error("no etcd answers at {place}: {}", .causes.join("; "))]
    Silent {
        /// As the user wrote it.
        place: String,
        /// What each member said or did, in the order in which they were asked.
        causes: Vec<String>,
    },
    /// It has said no.
    #[error("etcd refused it: {0}")]
    Refused(String),
    /// What it says is not understood.
    #[error("etcd said what is not understood: {0}")]
    Odd(String),
    /// What is needed to speak TLS is not there, or not right.
    #[error("`{}` {reason}: an etcd over TLS wants etcd-ca.pem beside godwit's configuration, and etcd-client.pem and \
             etcd-client.key where it asks who is there", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl From<EtcdError> for std::io::Error {
    fn from(error: EtcdError) -> Self {
        Self::other(error)
    }
}
