//! How a migration is to go.

use crate::link::{Cut, Instead};
use crate::world::{Then, Trap};
use godwit_migration::hooks::Hooks;
use godwit_migration::plan::{Limits, OnTimeout, Strategy, Tracker};
use godwit_migration::{Cancel, Phase, Role};
use godwit_restore::Policy;
use godwit_transfer::{Message, Refusal};
use godwit_witness::WitnessPlace;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What happens when it is asked whether to switch over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is nobody to ask.
    Nobody,
    /// Somebody answers.
    Says(bool),
    /// Somebody was there, and leaves.
    Leaves,
    /// No answer; the container is busy no more.
    CalmsDown,
    /// No answer at all.
    Sleeps,
    /// No answer; Ctrl-C.
    Interrupts,
}

/// How a migration is to go.
#[derive(Clone, Debug)]
pub struct Play {
    pub strategy: Strategy,
    pub tracker: Option<Tracker>,
    pub limits: Limits,
    pub traps: Vec<Trap>,
    /// Connections in all.
    pub connections: u16,
    /// Where the link breaks, by what the source sends and by what the destination sends.
    pub cuts: (Option<Cut>, Option<Cut>),
    /// Ctrl-C at the beginning of a phase: whose, and which.
    pub interrupt: Option<(Role, Phase)>,
    pub source_cancel: Cancel,
    pub destination_cancel: Cancel,
    /// A file that lies in the destination's volume already.
    pub in_the_way: Option<&'static str>,
    /// Why the destination cannot receive anything.
    pub unfit: Option<Refusal>,
    /// What the destination lets in.
    pub policy: Policy,
    /// Another process holds the container's lock at the destination.
    pub locked_there: bool,
    /// A file of so many incompressible bytes more in the volume.
    pub bulk: usize,
    /// Bytes a second at most; 0 is no limit.
    pub bandwidth: u64,
    /// The container writes more than the link carries.
    pub busy: bool,
    /// Whom both ask.
    pub witness: Option<WitnessPlace>,
    /// Who wants to hear of it.
    pub hooks: Hooks,
    /// Who answers at the source.
    pub answer: Answer,
    /// In the midst of the bulk the destination stops reading for a while, and Ctrl-C comes at the source.
    pub interrupt_when_full: bool,
    /// The versions of the wire that each side hears the other offer, when not its own.
    pub peers_speak: Option<(u16, u16)>,
    /// What the source says instead of one of its words.
    pub instead: Option<Instead>,
    /// The destination's engine makes the place of the volume.
    pub made_there: bool,
    /// Who answers instead of a real destination.
    pub liar: Option<Liar>,
    /// Looks at godwit's directories of both sides whenever something is told.
    pub look: Option<Look>,
}

/// What a destination that is none says to each message.
#[derive(Clone)]
pub struct Liar(pub Arc<Replace>);

/// What is said instead of a message.
type Replace = dyn Fn(&Message) -> Vec<Message> + Send + Sync;

/// Somebody who looks at directories.
#[derive(Clone)]
pub struct Look(pub Arc<LookAt>);

/// Looks at the directories of both sides.
type LookAt = dyn Fn(&[PathBuf]) + Send + Sync;

impl std::fmt::Debug for Liar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Liar")
    }
}

impl std::fmt::Debug for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Look")
    }
}

impl Play {
    /// Two pre-dump rounds, whatever is measured.
    pub fn pre_dump() -> Self {
        Self {
            strategy: Strategy::PreCopy,
            tracker: Some(Tracker::PreDump),
            limits: Limits {
                max_downtime: Duration::from_nanos(1),
                max_rounds: 2,
                on_timeout: OnTimeout::Switchover,
                ..Limits::default()
            },
            traps: vec![],
            connections: 1,
            cuts: (None, None),
            interrupt: None,
            source_cancel: Cancel::default(),
            destination_cancel: Cancel::default(),
            in_the_way: None,
            unfit: None,
            policy: Policy::default(),
            locked_there: false,
            bulk: 0,
            bandwidth: 0,
            busy: false,
            witness: None,
            hooks: Hooks::default(),
            answer: Answer::Nobody,
            interrupt_when_full: false,
            peers_speak: None,
            instead: None,
            made_there: false,
            liar: None,
            look: None,
        }
    }

    /// One checkpoint of the running container, then its difference.
    pub fn checkpoint() -> Self {
        Self { tracker: Some(Tracker::Checkpoint), ..Self::pre_dump() }
    }

    /// Pages read from outside, and so many connections.
    pub fn pages(connections: u16) -> Self {
        Self { tracker: Some(Tracker::Hash), connections, ..Self::pre_dump() }
    }

    /// As [`Play::pages`], all over the only connection.
    pub fn pages_beside_all_else() -> Self {
        Self::pages(1)
    }

    /// As [`Play::pages`], over two connections of their own.
    pub fn pages_by_themselves() -> Self {
        Self::pages(3)
    }

    /// A container that writes 4 MiB again and again over a link that carries 10 MiB/s, and may be throttled. That takes twice the limit: a
    /// link that had to wait carries more for a moment, and a slow machine has more to do at the freeze.
    pub fn busy() -> Self {
        let mut play = Self { busy: true, bandwidth: 10 << 20, ..Self::pages(1) };
        play.limits =
            Limits { max_downtime: Duration::from_millis(200), max_rounds: 5, throttle: 60, ..play.limits };
        play
    }

    /// Everything under one freeze.
    pub fn stop_and_copy() -> Self {
        Self { strategy: Strategy::StopAndCopy, tracker: None, ..Self::pre_dump() }
    }

    /// When a call comes for the n-th time the container has more memory than the destination keeps room for.
    pub fn flooded_at(mut self, call: &'static str, nth: usize) -> Self {
        self.traps.push(Trap { call, nth, then: Then::Flood });
        self
    }

    pub fn failing(mut self, call: &'static str, nth: usize) -> Self {
        self.traps.push(Trap { call, nth, then: Then::Fail });
        self
    }

    /// Ctrl-C while a call is under way.
    pub fn interrupted_in(mut self, role: Role, call: &'static str) -> Self {
        let cancel = if role == Role::Source { &self.source_cancel } else { &self.destination_cancel };
        self.traps.push(Trap { call, nth: 1, then: Then::Interrupt(cancel.clone()) });
        self
    }

    /// The destination cannot write files any more when the first of them are sent.
    pub fn losing_the_volume_there(mut self) -> Self {
        self.traps.push(Trap { call: "source.mapped_files", nth: 1, then: Then::RemoveVolumeThere });
        self
    }

    pub fn cut_source(self, cut: Cut) -> Self {
        Self { cuts: (Some(cut), None), ..self }
    }

    pub fn cut_destination(self, cut: Cut) -> Self {
        Self { cuts: (None, Some(cut)), ..self }
    }
}
