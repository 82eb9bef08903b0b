//! Which earlier checkpoint memory begins with: this host's store and all neighbours are asked what they know of, and the [policy](in_order)
//! says which is the best. How fast a link is decides among copies alone: whoever has the pages gives them, and slow ones give less.
//!
//! The source hears what pages a checkpoint has, and could claim all of them for its container. So another container's counts only
//! where the source may send a container of that name as well: then it could have learned as much by that name.

use super::choice::{Candidate, Distance, Of, in_order};
use super::signs::Signs;
use crate::destination::Host;
use crate::error::DestinationError;
use crate::job::Job;
use crate::policy::Policy;
use godwit_engine::is_image_id;
use godwit_neighbours::question::{Known, OfImage};
use godwit_neighbours::{Neighbour, checkpoints, of_image};
use godwit_store::{Digest, Manifest, Store};
use std::time::{Duration, Instant};

/// So many of them are tried, the best first.
const TRIES: usize = 3;

/// What is looked for.
pub(super) struct Wish<'a> {
    /// `ENGINE:NAME`.
    pub container: &'a str,
    /// What the source says that the container was made of.
    pub image: Option<&'a str>,
    policy: &'a Policy,
    peer: &'a str,
}

impl<'a> Wish<'a> {
    pub fn of(job: &'a Job, host: &'a Host) -> Self {
        let image = job.offer.image_id.as_deref().filter(|id| is_image_id(id));
        Self { container: &job.name, image, policy: &host.policy, peer: &host.peer.name }
    }

    /// What somebody knows of, as far as it counts.
    fn candidates(
        &self,
        found: Found,
        distance: Distance,
        at: Option<usize>,
    ) -> impl Iterator<Item = Candidate> {
        let itself = found.itself.into_iter().map(|known| (Of::Itself, self.container.to_owned(), known));
        let others = found.of_image.into_iter().filter(|other| {
            other.container != self.container && self.policy.may_know(self.peer, &other.container)
        });
        let others = others.map(|other| (Of::SameImage, other.container, other.known));
        let all = itself.chain(others).map(move |(of, container, known)| Candidate {
            of,
            container,
            known,
            distance,
            at,
        });
        all.collect::<Vec<_>>().into_iter()
    }
}

/// What somebody knows of.
#[derive(Default)]
struct Found {
    itself: Vec<Known>,
    of_image: Vec<OfImage>,
}

/// What memory begins with.
pub(super) struct Earlier {
    /// Whose checkpoint it is.
    pub container: String,
    /// Of its pages, with their bytes.
    pub chunks: Vec<(Digest, u64)>,
}

/// The best checkpoint; none where there is none that counts.
///
/// # Errors
/// Those of [`Signs::give`].
pub(super) fn find(
    wish: &Wish<'_>,
    own: Option<&Store>,
    neighbours: &mut [Box<dyn Neighbour>],
    signs: &mut Signs<'_>,
) -> Result<Option<Earlier>, DestinationError> {
    let mut candidates = Vec::new();
    let here = own.map(|own| Found {
        itself: checkpoints(own, wish.container),
        of_image: wish.image.map(|image| of_image(own, image)).unwrap_or_default(),
    });
    candidates.extend(wish.candidates(here.unwrap_or_default(), Distance::Here, None));
    let (container, image) = (wish.container, wish.image);
    let answers = signs.meanwhile(|| ask_all(neighbours, container, image))?;
    for (number, (found, took)) in answers.into_iter().enumerate() {
        candidates.extend(wish.candidates(found, Distance::Away(took), Some(number)));
    }
    for candidate in in_order(candidates).into_iter().take(TRIES) {
        let tree = candidate.known.tree;
        let manifest = signs.meanwhile(|| match candidate.at {
            None => own.and_then(|own| own.manifest_bytes(tree).ok()).map(|bytes| Manifest::decode(&bytes)),
            Some(number) => neighbours[number].manifest(tree).transpose(),
        })?;
        match manifest {
            Some(Ok(Manifest::Tree(tree))) => {
                return Ok(Some(Earlier { container: candidate.container, chunks: tree.page_chunks() }));
            }
            Some(Err(why)) => tracing::info!(why, "a checkpoint is not made use of"),
            Some(Ok(Manifest::Described(_))) | None => {}
        }
    }
    Ok(None)
}

/// Asks all at once; with how long each took for its last answer. Whoever does not answer has none: it is named when it is asked for
/// chunks.
fn ask_all(
    neighbours: &mut [Box<dyn Neighbour>],
    container: &str,
    image: Option<&str>,
) -> Vec<(Found, Duration)> {
    let ask = |neighbour: &mut Box<dyn Neighbour>| {
        let mut begun = Instant::now();
        let itself = neighbour.checkpoints(container).unwrap_or_default();
        let of_image = image.map(|image| {
            // the first answer waits for the connection, too
            begun = Instant::now();
            neighbour.of_image(image).unwrap_or_default()
        });
        (Found { itself, of_image: of_image.unwrap_or_default() }, begun.elapsed())
    };
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            neighbours.iter_mut().map(|neighbour| scope.spawn(move || ask(neighbour))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap_or_default()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Found {
        let known = Known { tree: Digest::of(b"tree"), made_unix_s: 7 };
        let of_image =
            names.iter().map(|name| OfImage { container: (*name).to_owned(), known: known.clone() });
        Found { itself: vec![known.clone()], of_image: of_image.collect() }
    }

    /// What counts of these for a sender of `runc:web`.
    fn counts(policy: &str, names: &[&str]) -> Vec<(Of, String)> {
        let policy = Policy::parse(policy).unwrap();
        let wish = Wish { container: "runc:web", image: Some("sha256:1f"), policy: &policy, peer: "rack2" };
        let candidates = wish.candidates(found(names), Distance::Here, None);
        candidates.map(|candidate| (candidate.of, candidate.container)).collect()
    }

    #[test]
    fn another_containers_checkpoint_counts_only_for_those_who_may_send_it() {
        let rule = |containers: &str| {
            format!("[[allow]]\nrule = \"a\"\npeers = [\"rack2\"]\ncontainers = [{containers}]\n")
        };
        let itself = (Of::Itself, "runc:web".to_owned());
        let names = ["runc:web", "runc:web-2", "podman:db"];
        let other = |name: &str| (Of::SameImage, name.to_owned());
        assert_eq!(counts(&rule("\"runc:web\""), &names), vec![itself.clone()]);
        assert_eq!(counts(&rule("\"runc:*\""), &names), [itself.clone(), other("runc:web-2")]);
        assert_eq!(counts(&rule("\"*\""), &names), [itself.clone(), other("runc:web-2"), other("podman:db")]);
        // somebody else's rule is not this one's
        let others = "[[allow]]\nrule = \"b\"\npeers = [\"rack3\"]\n";
        assert_eq!(counts(&(rule("\"runc:web\"") + others), &names), [itself]);
    }
}
