//! How a migration went, and what must be true of it however it ends.

use crate::fake::FakeEngine;
use crate::world::Witness;
use godwit_migration::journal::{Event as Wrote, JournalState, Line};
use godwit_migration::report::Summary;
use godwit_migration::{Disposition, Failure, MigrationId, Role};
use godwit_restore::{Host, Joins, Outcome, Policy};
use godwit_transfer::tree::equal_digest;
use godwit_transfer::{HostFacts, Peer};
use godwit_witness::WitnessPlace;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How a migration went.
pub struct Ended {
    /// Absent when not even the preamble came through.
    pub source: Option<Result<Summary, Failure>>,
    pub destination: Option<Result<Outcome, Failure>>,
    pub witness: Arc<Witness>,
    /// The journals, where there are any.
    pub source_journal: Option<(Vec<Line>, JournalState)>,
    pub destination_journal: Option<(Vec<Line>, JournalState)>,
    pub told: Vec<(Role, String)>,
    pub marks: (Vec<u64>, Vec<u64>),
    pub took: Duration,
    pub volumes: (PathBuf, PathBuf),
    pub roots: (PathBuf, PathBuf),
    pub id: MigrationId,
    /// Whom both asked.
    pub shared: Option<WitnessPlace>,
    pub(super) _dir: tempfile::TempDir,
}

impl Ended {
    /// The destination, as another process that begins there.
    pub fn host_there(&self) -> Host {
        Host {
            root: self.roots.1.clone(),
            engines: vec![Box::new(FakeEngine(self.witness.clone()))],
            facts: Ok(HostFacts::default()),
            lazy: Err("there are no real tasks".into()),
            peer: Peer { name: "test:".into(), shown: "this test".into() },
            policy: Policy::default(),
            joins: Joins::default(),
            parking: None,
            neighbours: Vec::new(),
            catalog: None,
        }
    }

    /// The source's failure, where there must be one.
    pub fn failure(&self) -> &Failure {
        match &self.source {
            Some(Err(failure)) => failure,
            other => panic!("no failure at the source: {other:?}"),
        }
    }

    pub fn summary(&self) -> &Summary {
        match &self.source {
            Some(Ok(summary)) => summary,
            other => panic!("no success at the source: {other:?}\n{:?}", self.told),
        }
    }

    pub fn calls(&self) -> Vec<&'static str> {
        self.witness.look().calls.clone()
    }

    /// The phases that a side went through: `begin` and `end` of each.
    pub fn phases(&self, role: Role) -> Vec<String> {
        let is_phase = |text: &str| text.ends_with(" begin") || text.ends_with(" end");
        self.told
            .iter()
            .filter(|(who, text)| *who == role && is_phase(text))
            .map(|(_, text)| text.clone())
            .collect()
    }

    /// What must be true however a migration ended.
    pub fn assert_sound(&self, context: &str) {
        let world = self.witness.look();
        let context = format!(
            "{context}\n  source: {:?}\n  destination: {:?}\n  journals: {:?} / {:?}\n  calls: {:?}",
            self.source,
            self.destination,
            self.source_journal.as_ref().map(|journal| journal.1),
            self.destination_journal.as_ref().map(|journal| journal.1),
            world.calls
        );
        assert!(world.violations.is_empty(), "{:#?}\n{context}", world.violations);
        assert!(!(world.source_runs && world.destination_runs), "it runs on both sides\n{context}");
        assert_eq!(world.cpu_limit, None, "it is still throttled\n{context}");
        assert!(self.took < Duration::from_secs(5), "it took {:?}\n{context}", self.took);
        let source_state = self.source_journal.as_ref().map(|journal| journal.1);
        let destination_state = self.destination_journal.as_ref().map(|journal| journal.1);
        match &self.source {
            None => assert!(
                world.source_runs && source_state.is_none(),
                "touched before anybody answered\n{context}"
            ),
            Some(Ok(summary)) => {
                assert_eq!(summary.disposition, Disposition::RunningAtDestination, "{context}");
                assert!(world.destination_runs && !world.source_runs, "{context}");
                assert_eq!(source_state, Some(JournalState::Completed), "{context}");
                assert_eq!(destination_state, Some(JournalState::Completed), "{context}");
            }
            Some(Err(failure)) if failure.disposition == Disposition::InDoubt => {
                assert_eq!(failure.kind.exit_code(), 20, "{context}");
                assert!(
                    !world.source_runs && !world.source_gone,
                    "in doubt, and not frozen and whole here\n{context}"
                );
                assert!(source_state.is_some_and(JournalState::is_open), "{context}");
                let lines = &self.source_journal.as_ref().unwrap().0;
                let committed = lines.iter().any(|line| line.event == Wrote::Committed);
                let thaw_failed = failure.hints.iter().any(|hint| hint.contains("thaw its cgroup"));
                assert!(committed || thaw_failed, "in doubt before the commit\n{context}");
            }
            Some(Err(failure)) => {
                assert_eq!(failure.disposition, Disposition::RunningAtSource, "{context}");
                assert!(
                    world.source_runs && !world.destination_runs,
                    "it does not run at the source\n{context}"
                );
                assert!(!world.locked && !world.disconnected, "it runs, but cannot be reached\n{context}");
                let rolled_back = [JournalState::RolledBack, JournalState::Untold];
                assert!(source_state.is_some_and(|state| rolled_back.contains(&state)), "{context}");
            }
        }
        let images = |root: &Path| {
            self.source_journal.iter().flat_map(|(lines, _)| lines.first()).any(|line| {
            matches!(&line.event, Wrote::Planned { migration, .. } if root.join("migrations").join(migration.as_str()).join("images").exists())
        })
        };
        let open = source_state.is_some_and(JournalState::is_open);
        let doubtful = open && source_state != Some(JournalState::Untold);
        assert!(doubtful || !images(&self.roots.0), "images are left at the source\n{context}");
        match destination_state {
            None | Some(JournalState::RolledBack) => {
                assert!(
                    !world.made && world.held.is_none(),
                    "something is left at the destination\n{context}"
                );
                assert!(!images(&self.roots.1), "images are left at the destination\n{context}");
                self.assert_no_files_there(&context);
            }
            Some(JournalState::Completed) => {
                assert!(!images(&self.roots.1), "images are left there\n{context}")
            }
            Some(JournalState::InDoubt | JournalState::Waiting) => {
                assert!(world.held.is_some(), "in doubt without a held tree\n{context}");
                let outcome = self.destination.as_ref().unwrap().as_ref();
                assert!(
                    outcome.is_err_and(|failure| failure.disposition == Disposition::InDoubt),
                    "{context}"
                );
            }
            Some(state) => panic!("the destination's journal ends in {state:?}\n{context}"),
        }
    }

    fn assert_no_files_there(&self, context: &str) {
        let there = &self.volumes.1;
        let names: Vec<_> =
            std::fs::read_dir(there).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        assert!(names.is_empty() || names == ["theirs"], "{names:?} are left at the destination\n{context}");
    }

    /// The container runs at the destination with all it had.
    pub fn assert_moved(&self) {
        self.assert_sound("it should have moved");
        self.summary();
        let world = self.witness.look();
        assert_eq!(world.held.as_ref(), Some(&world.memory));
        let digest = |path: &Path| equal_digest(path).unwrap().to_string();
        assert_eq!(digest(&self.volumes.0), digest(&self.volumes.1), "the files differ");
    }
}
