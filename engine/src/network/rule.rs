//! Rules of nf_tables: expressions that load, compare and decide (linux/netfilter/nf_tables.h).

use super::netlink::{ACK, CREATE, Message, attribute, nested};

const NEW_RULE: u16 = 10 << 8 | 6;
const APPEND: u16 = 0x800;
/// `struct nfgenmsg` of family `NFPROTO_INET`, version 0.
const INET: [u8; 4] = [1, 0, 0, 0];

const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const META_L4_PROTOCOL: u32 = 16;
const ACCEPT: u32 = 1;

/// How two values compare.
#[derive(Clone, Copy)]
pub(super) enum Compare {
    Equal = 0,
    NotEqual = 1,
    AtMost = 3,
    AtLeast = 5,
}

/// What an offset counts from.
#[derive(Clone, Copy)]
pub(super) enum Header {
    Link = 0,
    Transport = 2,
}

/// A rule under construction: its expressions in order.
#[derive(Default)]
pub(super) struct Rule(Vec<u8>);

impl Rule {
    /// Goes on for packets whose transport protocol compares like this.
    pub(super) fn protocol(self, compare: Compare, protocol: u8) -> Self {
        let load = [word(1, REGISTER), word(2, META_L4_PROTOCOL)].concat();
        self.expression("meta", &load).compare(compare, &[protocol])
    }

    /// Goes on for packets whose bytes at `offset` of a header compare like this.
    pub(super) fn bytes(self, header: Header, offset: u32, compare: Compare, value: &[u8]) -> Self {
        let load = [word(1, REGISTER), word(2, header as u32), word(3, offset), word(4, value.len() as u32)]
            .concat();
        self.expression("payload", &load).compare(compare, value)
    }

    /// Tells whoever listens to `group` of every packet that came so far (nfnetlink_log).
    pub(super) fn log(self, group: u16) -> Self {
        self.expression("log", &attribute(1, &group.to_be_bytes()))
    }

    /// Lets what came so far pass.
    pub(super) fn accept(self) -> Self {
        let verdict = nested(DATA_VERDICT, &word(VERDICT_CODE, ACCEPT));
        self.expression("immediate", &[word(1, VERDICT_REGISTER), nested(2, &verdict)].concat())
    }

    /// The request that appends it to a chain.
    pub(super) fn append_to(self, table: &str, chain: &str) -> Message {
        Message::new(NEW_RULE, CREATE | APPEND | ACK, &INET)
            .text(RULE_TABLE, table)
            .text(RULE_CHAIN, chain)
            .nest(RULE_EXPRESSIONS, &self.0)
    }

    fn compare(self, compare: Compare, value: &[u8]) -> Self {
        let data = nested(3, &attribute(DATA_VALUE, value));
        self.expression("cmp", &[word(1, REGISTER), word(2, compare as u32), data].concat())
    }

    fn expression(mut self, name: &str, data: &[u8]) -> Self {
        let name = attribute(EXPRESSION_NAME, &[name.as_bytes(), &[0]].concat());
        self.0.extend(nested(LIST_ELEMENT, &[name, nested(EXPRESSION_DATA, data)].concat()));
        self
    }
}

/// An attribute of 32 bits in network order.
fn word(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}
