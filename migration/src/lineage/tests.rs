use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const NODES: usize = 3;

fn writer(number: usize) -> WriterId {
    format!("{number:016x}").parse().unwrap()
}

/// All snapshots that went before, each by itself: what the numbers stand for.
type Truth = BTreeSet<usize>;

/// A volume on a node.
#[derive(Clone)]
struct Copy {
    writer: WriterId,
    made: u64,
    lineage: Lineage,
    truth: Truth,
}

#[derive(Clone, Debug)]
enum Step {
    /// A node makes a snapshot of what it has.
    Snapshot(usize),
    /// A node gets the content of another one in the place of its own, as by a migration.
    Move(usize, usize),
    /// A node says that what it has goes on from what another one has made, too.
    Take(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = || 0..NODES;
    let step = prop_oneof![
        3 => one().prop_map(Step::Snapshot),
        1 => (one(), one()).prop_map(|(from, to)| Step::Move(from, to)),
        1 => (one(), one()).prop_map(|(at, other)| Step::Take(at, other)),
    ];
    proptest::collection::vec(step, 0..40)
}

/// What a snapshot stems from, by the rule and in truth, for each that `steps` make.
fn snapshots_of(steps: Vec<Step>) -> Vec<(Lineage, Truth)> {
    let new =
        |number| Copy { writer: writer(number), made: 0, lineage: Lineage::default(), truth: Truth::new() };
    let mut copies: Vec<Copy> = (0..NODES).map(new).collect();
    let mut writers = NODES;
    let mut snapshots = Vec::new();
    for step in steps {
        match step {
            Step::Snapshot(at) => {
                let copy = &mut copies[at];
                copy.lineage = copy.lineage.next(&copy.writer);
                copy.made += 1;
                copy.truth.insert(snapshots.len());
                snapshots.push((copy.lineage.clone(), copy.truth.clone()));
            }
            Step::Move(from, to) => {
                let Copy { lineage, truth, .. } = copies[from].clone();
                let copy = &mut copies[to];
                if lineage.made_by(&copy.writer) != copy.made {
                    (copy.writer, copy.made) = (writer(writers), 0);
                    writers += 1;
                }
                (copy.lineage, copy.truth) = (lineage, truth);
            }
            Step::Take(at, other) => {
                let Copy { lineage, truth, .. } = copies[other].clone();
                copies[at].lineage = copies[at].lineage.joined(&lineage);
                copies[at].truth.extend(truth);
            }
        }
    }
    snapshots
}

fn relation(one: &Truth, other: &Truth) -> Option<Ordering> {
    match (one.is_superset(other), other.is_superset(one)) {
        (true, true) => Some(Ordering::Equal),
        (true, false) => Some(Ordering::Greater),
        (false, true) => Some(Ordering::Less),
        (false, false) => None,
    }
}

proptest! {
    #[test]
    fn histories_have_diverged_when_neither_has_all_that_the_other_has(steps in steps()) {
        let snapshots = snapshots_of(steps);
        for (lineage, truth) in &snapshots {
            for (other, other_truth) in &snapshots {
                prop_assert_eq!(lineage.partial_cmp(other), relation(truth, other_truth), "{} {}", lineage, other);
            }
            prop_assert_eq!(&lineage.to_string().parse::<Lineage>().unwrap(), lineage);
        }
        let lineages: Vec<&Lineage> = snapshots.iter().map(|(lineage, _)| lineage).collect();
        let ends = ends(&lineages);
        for lineage in &lineages {
            prop_assert!(ends.iter().any(|end| lineages[*end] >= lineage));
        }
        for one in &ends {
            for other in ends.iter().filter(|other| *other != one) {
                prop_assert_eq!(lineages[*one].partial_cmp(lineages[*other]), None);
            }
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "[0-9a-f=,]{0,80}|\\PC{0,40}") {
        if let Ok(lineage) = text.parse::<Lineage>() {
            prop_assert_eq!(lineage.to_string().parse::<Lineage>().unwrap(), lineage);
        }
    }
}

#[test]
fn whoever_goes_on_after_both_supersedes_both() {
    let first = Lineage::default().next(&writer(0));
    let (here, there) = (first.next(&writer(0)), first.next(&writer(1)));
    assert_eq!(here.partial_cmp(&there), None);
    assert_eq!(ends(&[&first, &here, &there, &here]), [1, 2]);
    let after = here.joined(&there).next(&writer(0));
    assert!(after > here && after > there && here > first);
    assert_eq!(ends(&[&first, &here, &there, &after]), [3]);
}

#[test]
fn what_nobody_writes_is_refused() {
    let (one, many) = (writer(1), (0..129).map(|number| format!("{}=1", writer(number))).collect::<Vec<_>>());
    for text in [
        "x=1".to_owned(),
        format!("{one}"),
        format!("{one}=0"),
        format!("{one}=-1"),
        format!("{one}=99999999999999999999"),
        format!("{one}=1,{one}=2"),
        format!("{one}=1,"),
        many.join(","),
    ] {
        assert!(text.parse::<Lineage>().is_err(), "{text}");
    }
    assert!("".parse::<Lineage>().unwrap().is_empty());
}
