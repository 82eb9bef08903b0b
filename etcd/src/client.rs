//! What is asked of an etcd.

use crate::certificates;
use crate::error::EtcdError;
use crate::gateway::{
    Bytes, Compare, Delete, Done, Grant, KeyValue, Leased, Number, OfLease, Put, Range, Ranged, Refusal,
    Step, Streamed, Transacted, Transaction,
};
use crate::place::Place;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::time::Duration;
use ureq::Agent;
use ureq::tls::TlsConfig;

/// How long a member may take until it is connected.
const CONNECT: Duration = Duration::from_secs(2);
/// How long one member may take for all of an answer.
const ANSWER: Duration = Duration::from_secs(4);
/// Longest answer, bytes: etcd itself takes requests of 1.5 MiB, and lists are asked for in pages.
const LIMIT: u64 = 16 << 20;
/// Entries of one page of a list.
const PAGE: i64 = 1000;
/// Steps of one transaction; etcd takes 128.
const STEPS: usize = 100;
/// gRPC's code for what is not there.
const NOT_FOUND: i32 = 5;

/// What is under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The whole key.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// Something that ends unless it is kept alive, and with it the entries under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease(i64);

/// An etcd that can be asked.
#[derive(Debug)]
pub struct Client {
    place: Place,
    agent: Agent,
}

impl Client {
    /// Nobody is asked yet. `dir`: where the certificates are for one over TLS.
    ///
    /// # Errors
    /// [`EtcdError::Certificate`].
    pub fn new(place: &Place, dir: &Path) -> Result<Self, EtcdError> {
        Self::with_patience(place, dir, ANSWER)
    }

    /// The same, with another time for each member's answer.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_patience(place: &Place, dir: &Path, answer: Duration) -> Result<Self, EtcdError> {
        let tls = if place.is_encrypted() { certificates::tls(dir)? } else { TlsConfig::default() };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT.min(answer)))
            .timeout_global(Some(answer))
            .tls_config(tls)
            .build();
        Ok(Self { place: place.clone(), agent: config.into() })
    }

    /// Which one it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Makes a key with this value if there is none; gives the value that it has then, which is for ever the same unless somebody
    /// removes it. May be asked again.
    ///
    /// # Errors
    /// [`EtcdError`]: then it may have been made.
    pub fn make_once(&self, key: &str, value: &str) -> Result<String, EtcdError> {
        let put = Put { key: key.into(), value: value.into(), lease: Number(0) };
        let transaction = Transaction {
            compare: vec![absent(key)],
            success: vec![Step::Put(put)],
            failure: vec![Step::Range(only(key))],
        };
        let done: Transacted = self.ask("kv/txn", &transaction)?;
        if done.succeeded {
            return Ok(value.to_owned());
        }
        let ranges = done.responses.into_iter().filter_map(|step| step.response_range);
        let found = ranges.flat_map(|range| range.kvs).next();
        entry(found.ok_or_else(|| EtcdError::Odd("a key that is there and is not".into()))?)
            .map(|entry| entry.value)
    }

    /// What is under a key, as a majority has it; none where there is nothing.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub fn get(&self, key: &str) -> Result<Option<String>, EtcdError> {
        let found: Ranged = self.ask("kv/range", &only(key))?;
        found.kvs.into_iter().next().map(|found| entry(found).map(|entry| entry.value)).transpose()
    }

    /// All whose keys begin with `prefix`, by key, `most` at most.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub fn list(&self, prefix: &str, most: usize) -> Result<Vec<Entry>, EtcdError> {
        let mut all = Vec::new();
        let mut from = prefix.as_bytes().to_vec();
        loop {
            let range = Range {
                key: Bytes(from),
                range_end: Some(end_of(prefix)),
                limit: Number(PAGE.min((most - all.len()) as i64)),
            };
            let page: Ranged = self.ask("kv/range", &range)?;
            let is_full = page.kvs.len() as i64 == PAGE;
            for found in page.kvs {
                all.push(entry(found)?);
            }
            match all.last() {
                // the next possible key
                Some(last) if is_full && all.len() < most => from = [last.key.as_bytes(), &[0]].concat(),
                _ => return Ok(all),
            }
        }
    }

    /// Puts entries under a lease, and removes others. In several transactions when there are many.
    ///
    /// # Errors
    /// [`EtcdError`]: then some of it may have been done. [`EtcdError::Refused`] when the lease is over, among others.
    pub fn change(&self, lease: Lease, put: &[Entry], remove: &[String]) -> Result<(), EtcdError> {
        let put = put.iter().map(|Entry { key, value }| {
            Step::Put(Put { key: (&**key).into(), value: (&**value).into(), lease: Number(lease.0) })
        });
        let remove = remove.iter().map(|key| Step::Delete(Delete { key: (&**key).into() }));
        let mut steps = put.chain(remove).peekable();
        while steps.peek().is_some() {
            let success = steps.by_ref().take(STEPS).collect();
            let _: Transacted =
                self.ask("kv/txn", &Transaction { compare: Vec::new(), success, failure: Vec::new() })?;
        }
        Ok(())
    }

    /// A new lease, that ends after `ttl` (whole seconds) without [`Client::keep_alive`].
    ///
    /// # Errors
    /// [`EtcdError`].
    pub fn grant(&self, ttl: Duration) -> Result<Lease, EtcdError> {
        let ttl = Number(ttl.as_secs().max(1) as i64);
        self.ask("lease/grant", &Grant { ttl }).map(|leased: Leased| Lease(leased.id.0))
    }

    /// Keeps one alive for its time from now on; false when it has ended, and with it its entries.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub fn keep_alive(&self, lease: Lease) -> Result<bool, EtcdError> {
        let kept: Streamed<Leased> = self.ask("lease/keepalive", &OfLease { id: Number(lease.0) })?;
        Ok(kept.result.ttl.0 > 0)
    }

    /// Ends one, and with it its entries. One that has ended already is fine.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub fn revoke(&self, lease: Lease) -> Result<(), EtcdError> {
        self.ask("lease/revoke", &OfLease { id: Number(lease.0) }).map(|_: Option<Done>| ())
    }

    /// Asks one member after the other, until one answers.
    fn ask<T: DeserializeOwned>(&self, what: &str, question: &impl Serialize) -> Result<T, EtcdError> {
        let body = serde_json::to_vec(question).map_err(|error| EtcdError::Odd(error.to_string()))?;
        let mut causes = Vec::new();
        for url in self.place.urls() {
            match self.ask_one(&format!("{url}/v3/{what}"), &body) {
                Ok(answer) => return understood(what, &answer),
                Err(cause) => causes.push(format!("{url}: {cause}")),
            }
        }
        Err(EtcdError::Silent { place: self.place.to_string(), causes })
    }

    /// An answer, be it a refusal; what is wrong with the member if it has none.
    fn ask_one(&self, url: &str, body: &[u8]) -> Result<Answer, String> {
        let asked = self.agent.post(url).content_type("application/json").send(body);
        let mut answer = asked.map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(LIMIT).read_to_vec();
        let answer = Answer { status, body: body.map_err(|error| error.to_string())? };
        match status {
            // it has no leader, or waited for one
            500.. => Err(answer.refusal().0),
            _ => Ok(answer),
        }
    }
}

/// What a member has said.
struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Answer {
    /// In words, and gRPC's code of it.
    fn refusal(&self) -> (String, i32) {
        let said: Refusal = serde_json::from_slice(&self.body).unwrap_or_default();
        match said.error.as_str() {
            Some(text) => (text.to_owned(), said.code),
            None => (format!("status {}", self.status), said.code),
        }
    }
}

fn understood<T: DeserializeOwned>(what: &str, answer: &Answer) -> Result<T, EtcdError> {
    if answer.status == 200 {
        return serde_json::from_slice(&answer.body).map_err(|error| EtcdError::Odd(error.to_string()));
    }
    let (text, code) = answer.refusal();
    match (code, what) {
        // a lease that is over need not be ended
        (NOT_FOUND, "lease/revoke") => {
            serde_json::from_str("null").map_err(|error| EtcdError::Odd(error.to_string()))
        }
        _ => Err(EtcdError::Refused(text)),
    }
}

fn absent(key: &str) -> Compare {
    Compare { target: "CREATE", result: "EQUAL", key: key.into(), create_revision: Number(0) }
}

fn only(key: &str) -> Range {
    Range { key: key.into(), range_end: None, limit: Number(1) }
}

/// The first key behind all that begin with `prefix`; keys are of ASCII.
fn end_of(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    Bytes(end)
}

fn entry(found: KeyValue) -> Result<Entry, EtcdError> {
    let text = |bytes: Bytes| String::from_utf8(bytes.0).map_err(|error| EtcdError::Odd(error.to_string()));
    Ok(Entry { key: text(found.key)?, value: text(found.value)? })
}
