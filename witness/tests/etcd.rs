//! A real etcd as a witness: one winner, for ever, and nothing known while it cannot be asked.
#![allow(clippy::unwrap_used)]

use godwit_etcd_server::Etcd;
use godwit_migration::{MigrationId, Role};
use godwit_witness::{Witness, WitnessPlace};
use std::thread;

#[test]
fn the_first_of_two_sides_has_it_over_a_restart_too() {
    let Some(mut etcd) = Etcd::start() else { return };
    let witness: WitnessPlace = etcd.place().parse().unwrap();
    let mut ends = Vec::new();
    for _ in 0..20 {
        let id = MigrationId::generate().unwrap();
        assert_eq!(witness.holder(&id).unwrap(), None);
        let claim = |side| witness.claim(&id, side).unwrap();
        let (one, other) = thread::scope(|scope| {
            let one = scope.spawn(|| claim(Role::Source));
            let other = scope.spawn(|| claim(Role::Destination));
            (one.join().unwrap(), other.join().unwrap())
        });
        assert_eq!(one, other);
        ends.push((id, one));
    }
    assert!(!witness.is_running(&ends[0].0).unwrap());
    witness.note_running(&ends[0].0).unwrap();
    witness.note_running(&ends[0].0).unwrap();
    etcd.kill();
    assert!(witness.is_running(&ends[0].0).is_err(), "nothing is known");
    assert!(witness.claim(&ends[0].0, Role::Source).is_err(), "nothing is known");
    assert!(witness.holder(&ends[0].0).is_err(), "nothing is known");
    etcd.restart();
    assert!(witness.is_running(&ends[0].0).unwrap() && !witness.is_running(&ends[1].0).unwrap());
    for (id, whose) in ends {
        assert_eq!(witness.claim(&id, Role::Source).unwrap(), whose);
        assert_eq!(witness.claim(&id, Role::Destination).unwrap(), whose);
        assert_eq!(witness.holder(&id).unwrap(), Some(whose));
    }
}
