//! A neighbour of whom only the address is known, until it is asked something.

use crate::gather::Neighbour;
use crate::question::{Known, OfImage};
use crate::visit::Visit;
use godwit_migration::Cancel;
use godwit_store::{Digest, Manifest};
use godwit_transfer::{Address, connect};

/// What ssh runs at a neighbour's.
const REMOTE_COMMAND: &str = "godwit node serve --stdio";

/// A neighbour that is visited when it is first asked: one that does not answer holds nobody up.
pub struct Acquaintance {
    name: String,
    address: Address,
    host: String,
    over: Cancel,
    visit: Option<Result<Visit, String>>,
}

impl Acquaintance {
    /// Nobody is asked anything yet. `host`: what this host is called; `over` ends the visit.
    pub fn new(address: Address, host: &str, over: Cancel) -> Self {
        Self { name: address.to_string(), address, host: host.to_owned(), over, visit: None }
    }

    /// Goes there, if that was not done yet.
    ///
    /// # Errors
    /// Why it cannot be asked, now or once.
    pub fn visit(&mut self) -> Result<&mut Visit, String> {
        let Self { name, address, host, over, visit } = self;
        let begin = || {
            let transport = connect(address, REMOTE_COMMAND).map_err(|error| error.to_string())?;
            Visit::begin(&**name, transport, host, over.clone()).map_err(|error| error.to_string())
        };
        visit.get_or_insert_with(begin).as_mut().map_err(|why| why.clone())
    }

    /// Asks it something; whoever fails once is not asked again.
    fn ask<T>(&mut self, question: impl FnOnce(&mut Visit) -> Result<T, String>) -> Result<T, String> {
        let answer = question(self.visit()?);
        if let Err(why) = &answer {
            self.visit = Some(Err(why.clone()));
        }
        answer
    }
}

impl Neighbour for Acquaintance {
    fn name(&self) -> &str {
        &self.name
    }

    fn has(&mut self, digests: &[Digest]) -> Result<Vec<bool>, String> {
        self.ask(|visit| visit.has(digests))
    }

    fn checkpoints(&mut self, container: &str) -> Result<Vec<Known>, String> {
        self.ask(|visit| visit.checkpoints(container))
    }

    fn of_image(&mut self, image: &str) -> Result<Vec<OfImage>, String> {
        self.ask(|visit| visit.of_image(image))
    }

    fn manifest(&mut self, digest: Digest) -> Result<Option<Manifest>, String> {
        self.ask(|visit| visit.manifest(digest))
    }

    fn give(&mut self, digests: &[Digest]) -> Result<Vec<Option<Vec<u8>>>, String> {
        self.ask(|visit| visit.give(digests))
    }
}
