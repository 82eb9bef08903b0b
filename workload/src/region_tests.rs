use super::*;
use crate::sys::process::{self, Forked};

fn small(kind: Kind) -> Region {
    let count = if kind == Kind::Thp { 512 } else { 16 };
    let mut region = Region::new(kind as u64 + 100, kind, count, None).unwrap();
    region.write_all().unwrap();
    region
}

fn check(region: &Region) -> Findings {
    let mut findings = Findings::default();
    region.verify(&mut findings);
    findings
}

const KINDS: [Kind; 12] = [
    Kind::Anon,
    Kind::Thp,
    Kind::Heap,
    Kind::Brk,
    Kind::Guard,
    Kind::ProtNone,
    Kind::Mlock,
    Kind::WriteOnly,
    Kind::SharedAnon,
    Kind::Memfd,
    Kind::MemfdUnmapped,
    Kind::SysV,
];

fn discard(region: Region) {
    match region.backing {
        Backing::Mapped(pages) if region.kind == Kind::SysV => {
            memory::detach(pages).unwrap();
            memory::remove_segment(region.object).unwrap();
        }
        _ => {}
    }
}

#[test]
fn every_kind_is_what_was_written() {
    for kind in KINDS {
        let mut region = small(kind);
        for page in [1, 2, 3, 2, 2] {
            region.poke(page).unwrap();
        }
        region.write(3).unwrap();
        region.poke(3).unwrap();
        let findings = check(&region);
        assert!(findings.is_pass(), "{kind}: {findings:?}");
        assert_eq!(findings.pages as usize, region.count(), "{kind}");
        discard(region);
    }
}

#[test]
fn one_wrong_word_is_found_in_every_kind() {
    for kind in KINDS {
        let region = small(kind);
        match &region.backing {
            Backing::Descriptor(descriptor, _) => {
                let mut words = file::read_page(*descriptor, 5).unwrap();
                words[100] ^= 1;
                file::write_page(*descriptor, 5, &words).unwrap();
            }
            Backing::Mapped(pages) => accessible(kind, pages, 5, 1, || {
                pages.set(5, 100, pages.get(5, 100) ^ 1);
                Ok(())
            })
            .unwrap(),
        }
        let findings = check(&region);
        assert_eq!((findings.bad, findings.bad_tables), (1, 0), "{kind}: {findings:?}");
        discard(region);
    }
}

#[test]
fn a_guard_that_is_none_any_more_is_bad() {
    let region = small(Kind::Guard);
    let Backing::Mapped(pages) = &region.backing else { panic!() };
    pages.protect(4, 1, Access::Both).unwrap();
    assert_eq!(check(&region).bad, 1);
    let region = small(Kind::ProtNone);
    let Backing::Mapped(pages) = &region.backing else { panic!() };
    pages.protect(0, 1, Access::Read).unwrap();
    assert_eq!(check(&region).bad, 1);
    assert!(check(&region).is_pass(), "the check closed it again");
}

#[test]
fn a_page_that_may_be_zero_is_nothing_else() {
    let region = small(Kind::Anon);
    region.table.set(3, region.table.get(3).or_zero());
    assert!(check(&region).is_pass());
    let Backing::Mapped(pages) = &region.backing else { panic!() };
    (0..WORDS).for_each(|word| pages.set(3, word, 0));
    assert!(check(&region).is_pass());
    pages.set(3, 9, 1);
    assert_eq!(check(&region).bad, 1);
}

#[test]
fn what_a_bad_page_holds_is_told() {
    let mut region = small(Kind::Anon);
    let old = region.content_of(3, region.table.get(3)).words();
    let same = region.content_of(4, region.table.get(4)).words();
    region.write(3).unwrap();
    region.write(5).unwrap();
    region.poke(4).unwrap();
    let Backing::Mapped(pages) = &region.backing else { panic!() };
    (0..WORDS).for_each(|word| {
        pages.set(3, word, old[word]);
        pages.set(4, word, same[word]);
        pages.set(5, word, 0);
    });
    let told = check(&region).line(0, &[]);
    assert!(told.contains("writes of this region ago"), "{told}");
    assert!(told.contains("an older poke?"), "{told}");
    assert!(told.contains(r#""holds":"zero""#), "{told}");
}

#[test]
fn a_page_of_the_other_side_of_a_fork_is_bad() {
    let mut region = small(Kind::Anon);
    let Forked::Parent(child) = process::fork().unwrap() else {
        let mut passed = check(&region).is_pass();
        region.part_from_parent(Share { of: 1, mine: 0 }, 77);
        let written_next = |region: &mut Region| {
            region.write(1).unwrap();
            region.table.get(1)
        };
        passed &= written_next(&mut region) != Entry::written(mix(region.number) as u32);
        passed &= check(&region).is_pass();
        process::exit(if passed { 0 } else { 1 });
    };
    region.write(1).unwrap();
    assert_eq!(process::wait(child, false).unwrap(), Some(process::Ended::Code(0)));
    assert!(check(&region).is_pass());
}

#[test]
fn shared_pages_have_one_writer_each() {
    let mut region = Region::new(1, Kind::SharedAnon, 10, None).unwrap();
    region.share_out(Share { of: 3, mine: 2 });
    region.write_all().unwrap();
    let written =
        |region: &Region| (0..10).filter(|&page| region.table.get(page) != Entry::NEW).collect::<Vec<_>>();
    assert_eq!(written(&region), [2, 5, 8]);
    assert_eq!(region.mine_near(9), Some(2));
    assert!(check(&region).is_pass());
}
