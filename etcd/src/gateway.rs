//! The words of the gateway: protobuf's JSON of etcd's `rpc.proto`. Bytes are base64, 64-bit numbers are strings, and what is
//! nothing is left out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes as the gateway writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes(pub Vec<u8>);

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A number as the gateway writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Number(pub i64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_string())
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// `RangeRequest`.
#[derive(Debug, Serialize)]
pub(crate) struct Range {
    pub key: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range_end: Option<Bytes>,
    pub limit: Number,
}

/// `PutRequest`.
#[derive(Debug, Serialize)]
pub(crate) struct Put {
    pub key: Bytes,
    pub value: Bytes,
    pub lease: Number,
}

/// `DeleteRangeRequest`.
#[derive(Debug, Serialize)]
pub(crate) struct Delete {
    pub key: Bytes,
}

/// `Compare`: that a key was made at this revision; 0 is that there is none.
#[derive(Debug, Serialize)]
pub(crate) struct Compare {
    pub target: &'static str,
    pub result: &'static str,
    pub key: Bytes,
    pub create_revision: Number,
}

/// `RequestOp`.
#[derive(Debug, Serialize)]
pub(crate) enum Step {
    #[serde(rename = "request_put")]
    Put(Put),
    #[serde(rename = "request_range")]
    Range(Range),
    #[serde(rename = "request_delete_range")]
    Delete(Delete),
}

/// `TxnRequest`.
#[derive(Debug, Serialize)]
pub(crate) struct Transaction {
    pub compare: Vec<Compare>,
    pub success: Vec<Step>,
    pub failure: Vec<Step>,
}

/// `LeaseGrantRequest`.
#[derive(Debug, Serialize)]
pub(crate) struct Grant {
    #[serde(rename = "TTL")]
    pub ttl: Number,
}

/// `LeaseKeepAliveRequest` and `LeaseRevokeRequest`.
#[derive(Debug, Serialize)]
pub(crate) struct OfLease {
    #[serde(rename = "ID")]
    pub id: Number,
}

/// `KeyValue`.
#[derive(Debug, Deserialize)]
pub(crate) struct KeyValue {
    pub key: Bytes,
    #[serde(default)]
    pub value: Bytes,
}

/// `RangeResponse`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Ranged {
    #[serde(default)]
    pub kvs: Vec<KeyValue>,
}

/// `TxnResponse`.
#[derive(Debug, Deserialize)]
pub(crate) struct Transacted {
    #[serde(default)]
    pub succeeded: bool,
    #[serde(default)]
    pub responses: Vec<Stepped>,
}

/// `ResponseOp`.
#[derive(Debug, Deserialize)]
pub(crate) struct Stepped {
    pub response_range: Option<Ranged>,
}

/// `LeaseGrantResponse`, and that of keeping one alive.
#[derive(Debug, Deserialize)]
pub(crate) struct Leased {
    #[serde(rename = "ID", default)]
    pub id: Number,
    #[serde(rename = "TTL", default)]
    pub ttl: Number,
}

/// One answer of a stream.
#[derive(Debug, Deserialize)]
pub(crate) struct Streamed<T> {
    pub result: T,
}

/// An answer of which nothing matters but that it came.
#[derive(Debug, Deserialize)]
pub(crate) struct Done {}

/// A refusal.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Refusal {
    #[serde(default)]
    pub error: serde_json::Value,
    /// gRPC's code.
    #[serde(default)]
    pub code: i32,
}
