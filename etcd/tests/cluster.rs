//! A real etcd: what is made once is made once, whatever becomes of etcd and of its answers; what is under a lease goes with it.
#![allow(clippy::unwrap_used)]

use godwit_etcd::{Client, Entry, EtcdError, Place};
use godwit_etcd_server::{Etcd, LossyLine};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// For an etcd that is there.
const PATIENCE: Duration = Duration::from_secs(20);
/// For one that is not to answer.
const HASTE: Duration = Duration::from_millis(500);

fn client(place: &str, patience: Duration) -> Client {
    Client::with_patience(&place.parse::<Place>().unwrap(), Path::new("/nowhere"), patience).unwrap()
}

fn entry(key: &str, value: &str) -> Entry {
    Entry { key: key.into(), value: value.into() }
}

fn keys(client: &Client, prefix: &str) -> Vec<String> {
    client.list(prefix, 10_000).unwrap().into_iter().map(|entry| entry.key).collect()
}

#[test]
fn of_many_who_make_a_key_at_once_the_first_has_it_for_ever() {
    let Some(mut etcd) = Etcd::start() else { return };
    let place = etcd.place();
    let mut made = Vec::new();
    for key in ["/godwit/witness/1", "/godwit/witness/2", "/godwit/witness/3"] {
        let told: Vec<String> = thread::scope(|scope| {
            let make = |number: usize| {
                let place = &place;
                scope.spawn(move || {
                    client(place, PATIENCE).make_once(key, &format!("claimant {number}")).unwrap()
                })
            };
            (0..16).map(make).collect::<Vec<_>>().into_iter().map(|made| made.join().unwrap()).collect()
        });
        assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
        made.push((key, told[0].clone()));
    }
    etcd.restart();
    let client = client(&place, PATIENCE);
    for (key, value) in made {
        assert_eq!(client.make_once(key, "too late").unwrap(), value);
        assert_eq!(client.get(key).unwrap(), Some(value));
    }
    assert_eq!(client.get("/godwit/witness/4").unwrap(), None);
}

#[test]
fn what_was_made_and_never_answered_stands() {
    let Some(etcd) = Etcd::start() else { return };
    let line = LossyLine::to(etcd.port()).unwrap();
    let cut = format!("etcd://127.0.0.1:{}", line.port);
    let key = "/godwit/witness/1";
    let lost = client(&cut, PATIENCE).make_once(key, "source").unwrap_err();
    assert!(matches!(lost, EtcdError::Silent { .. }), "{lost}");
    let client_there = client(&etcd.place(), PATIENCE);
    assert_eq!(client_there.make_once(key, "destination").unwrap(), "source");
    assert_eq!(client_there.make_once(key, "source").unwrap(), "source", "who asks again hears the same");
    // through one whose answer is lost, and then another member
    let both = format!("{cut},127.0.0.1:{}", etcd.port());
    assert_eq!(client(&both, PATIENCE).make_once("/godwit/witness/2", "source").unwrap(), "source");
}

#[test]
fn who_does_not_answer_is_named_in_time_and_another_member_is_asked() {
    let Some(mut etcd) = Etcd::start() else { return };
    let place = etcd.place();
    etcd.stop();
    let begun = Instant::now();
    let silent = client(&place, HASTE).get("/godwit/x").unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(silent.to_string().contains(&format!("127.0.0.1:{}", etcd.port())), "{silent}");
    etcd.go_on();
    // nobody listens at the first one
    let two = place.replace("etcd://", "etcd://127.0.0.1:1,");
    assert_eq!(client(&two, PATIENCE).get("/godwit/x").unwrap(), None);
    etcd.kill();
    assert!(
        matches!(client(&two, HASTE).get("/godwit/x"), Err(EtcdError::Silent { causes, .. }) if causes.len() == 2)
    );
    etcd.restart();
    assert_eq!(client(&two, PATIENCE).get("/godwit/x").unwrap(), None);
}

#[test]
fn what_is_under_a_lease_goes_with_it() {
    let Some(mut etcd) = Etcd::start() else { return };
    let client = client(&etcd.place(), PATIENCE);
    let (kept, left) =
        (client.grant(Duration::from_secs(60)).unwrap(), client.grant(Duration::from_secs(1)).unwrap());
    client.change(kept, &[entry("/godwit/nodes/kept", "1"), entry("/godwit/nodes/old", "1")], &[]).unwrap();
    client.change(left, &[entry("/godwit/nodes/left", "1")], &[]).unwrap();
    client.change(kept, &[entry("/godwit/nodes/kept", "2")], &["/godwit/nodes/old".into()]).unwrap();
    let until = Instant::now() + PATIENCE;
    while keys(&client, "/godwit/nodes/").len() > 1 && Instant::now() < until {
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(client.list("/godwit/nodes/", 10).unwrap(), [entry("/godwit/nodes/kept", "2")]);
    assert!(!client.keep_alive(left).unwrap());
    let over = client.change(left, &[entry("/godwit/nodes/left", "1")], &[]).unwrap_err();
    assert!(matches!(&over, EtcdError::Refused(why) if why.contains("lease")), "{over}");
    // etcd knows its leases after it was started again
    etcd.restart();
    assert!(client.keep_alive(kept).unwrap());
    client.revoke(kept).unwrap();
    client.revoke(kept).unwrap();
    assert_eq!(keys(&client, "/godwit/"), [""; 0]);
}

#[test]
fn a_list_has_all_of_what_begins_like_it() {
    let Some(etcd) = Etcd::start() else { return };
    let client = client(&etcd.place(), PATIENCE);
    let lease = client.grant(Duration::from_secs(60)).unwrap();
    let many: Vec<Entry> = (0..2500).map(|number| entry(&format!("/godwit/a/{number:04}"), "x")).collect();
    client.change(lease, &many, &[]).unwrap();
    client.change(lease, &[entry("/godwit/b/0", "x")], &[]).unwrap();
    assert_eq!(client.list("/godwit/a/", 10_000).unwrap(), many);
    assert_eq!(client.list("/godwit/a/", 3).unwrap(), many[..3]);
    assert_eq!(client.list("/godwit/a/", 1000).unwrap(), many[..1000]);
}
