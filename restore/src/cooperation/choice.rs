//! The policy which of the checkpoints that are known memory begins with. To have another one, replace [`in_order`].

use godwit_neighbours::question::Known;
use std::cmp::Reverse;
use std::time::Duration;

/// What a checkpoint is of. The first is the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Of {
    /// The container itself, as it was.
    Itself,
    /// Another container of the same image.
    SameImage,
}

/// How near a checkpoint is. The first is the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Distance {
    /// In this host's store.
    Here,
    /// At a neighbour that took so long for its last answer.
    Away(Duration),
}

/// A checkpoint that memory could begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub of: Of,
    /// Whose: `ENGINE:NAME`.
    pub container: String,
    pub known: Known,
    pub distance: Distance,
    /// Which neighbour has it; none: this host.
    pub at: Option<usize>,
}

/// The best first: one of the container itself before one of another container of its image, however old; of those the newest; of equally
/// new ones, mostly copies of the same one, the one that is nearer.
pub(super) fn in_order(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.sort_by_key(|candidate| {
        (candidate.of, Reverse(candidate.known.made_unix_s), candidate.distance, candidate.at)
    });
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_store::Digest;

    fn candidate(of: Of, made_unix_s: u64, distance: Distance, at: Option<usize>) -> Candidate {
        let known = Known { tree: Digest::of(&made_unix_s.to_le_bytes()), made_unix_s };
        Candidate { of, container: "runc:web".into(), known, distance, at }
    }

    fn away(ms: u64) -> Distance {
        Distance::Away(Duration::from_millis(ms))
    }

    #[track_caller]
    fn assert_first(better: &Candidate, worse: &Candidate) {
        for both in [[better, worse], [worse, better]] {
            let ordered = in_order(both.into_iter().cloned().collect());
            assert_eq!(&ordered[0], better);
        }
    }

    #[test]
    fn the_same_container_comes_before_the_same_image_however_new_or_near() {
        assert_first(
            &candidate(Of::Itself, 1, away(900), Some(3)),
            &candidate(Of::SameImage, 9, Distance::Here, None),
        );
    }

    #[test]
    fn of_the_same_kind_the_newest_comes_first_however_near() {
        for of in [Of::Itself, Of::SameImage] {
            assert_first(&candidate(of, 9, away(900), Some(3)), &candidate(of, 8, Distance::Here, None));
        }
    }

    #[test]
    fn of_equals_the_own_store_comes_first_and_then_who_answers_sooner() {
        let of = Of::SameImage;
        assert_first(&candidate(of, 9, Distance::Here, None), &candidate(of, 9, away(0), Some(0)));
        assert_first(&candidate(of, 9, away(2), Some(1)), &candidate(of, 9, away(3), Some(0)));
        assert_first(&candidate(of, 9, away(2), Some(0)), &candidate(of, 9, away(2), Some(1)));
    }
}
