//! Images of a place go, by their names or by a policy, and then the packs that no other image needs: `godwit images gc`.

use crate::args::{Args, ImagesForgetArgs, ImagesGcArgs};
use crate::commands::images::place::{self, DIGITS};
use crate::commands::volume::policy;
use crate::commands::{object_storage, sealing, store};
use crate::draw::{Draw, table};
use godwit_migration::quantity::show_bytes;
use godwit_migration::{Cancel, Failure, FailureKind};
use godwit_object_storage::index::Keys;
use godwit_object_storage::{Amount, Collected, Collection, Kind, Place, PlaceError, PlaceName, collect};
use godwit_store::Digest;
use godwit_volumes::{Policy, Reason};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An image of a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub kind: Kind,
    pub manifest: Digest,
    /// The volume; of checkpoints nothing, since all in a place are of one container.
    pub volume: Option<String>,
    /// When it was made, µs since 1970.
    pub made_unix_us: u64,
    is_stash: bool,
}

/// Which images stay.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rule {
    pub policy: Policy,
    /// What is older than this goes all the same.
    pub expire: Option<Duration>,
}

impl Rule {
    fn is_empty(&self) -> bool {
        self.policy.is_empty() && self.expire.is_none()
    }

    /// Why each of these stays, newest first: those without a reason go. Those of one volume, or of the container.
    fn judge(&self, images: Vec<Image>, now: u64) -> Vec<(Image, Vec<String>)> {
        let mut images: Vec<Image> = images.into_iter().filter(|image| !image.is_stash).collect();
        images.sort_by_key(|image| (std::cmp::Reverse(image.made_unix_us), image.manifest));
        let made: Vec<u64> = images.iter().map(|image| image.made_unix_us / 1_000_000).collect();
        let by_policy = match self.policy.is_empty() {
            true => vec![vec!["not older".to_owned()]; images.len()],
            false => self.policy.reasons(&made).into_iter().map(|why| words(&why)).collect(),
        };
        let is_over = |made: u64| self.expire.is_some_and(|age| now.saturating_sub(made) > age.as_secs());
        let judged = images.into_iter().zip(by_policy);
        judged
            .map(
                |(image, why)| {
                    if is_over(image.made_unix_us / 1_000_000) { (image, vec![]) } else { (image, why) }
                },
            )
            .collect()
    }
}

/// What is needed of this host.
pub struct ThisHost<'a> {
    /// godwit's directory.
    pub root: &'a Path,
    /// What shows how far it is.
    pub bar: ProgressBar,
}

fn host_of(args: &Args) -> ThisHost<'_> {
    ThisHost { root: &args.global.root, bar: store::bar(args) }
}

fn words(reasons: &[Reason]) -> Vec<String> {
    reasons.iter().map(ToString::to_string).collect()
}

/// `godwit images forget`, of images of one place: `images` are not empty.
pub fn forget(
    args: &Args,
    wanted: &ImagesForgetArgs,
    images: &[PlaceName],
    draw: &Draw,
    cancel: &Cancel,
) -> Result<u8, Failure> {
    let rule = Rule { policy: policy(&wanted.keep), expire: wanted.expire };
    let name = refuse(images, &rule)?;
    let identities = sealing::read_identities(&wanted.gc.identities)?;
    let keys = Keys(identities.as_ref());
    let place = existing(&name, cancel)?;
    let what = format!("nothing of `{name}` is forgotten");
    let failed = |error: PlaceError| failure(&what, &error, &args.global.root);
    let judged = match rule.is_empty() {
        true => named(&place, images).map_err(failed)?,
        false => judge(&place, keys, &rule, &|_| true).map_err(failed)?,
    };
    let collected = let_go(&host_of(args), &place, &judged, keys, wanted.gc.dry_run)?;
    say(&name, &judged, &collected, wanted.gc.dry_run, draw);
    Ok(0)
}

/// `godwit images gc`.
pub fn gc(args: &Args, wanted: &ImagesGcArgs, draw: &Draw, cancel: &Cancel) -> Result<u8, Failure> {
    let name = &wanted.place;
    if name.image.is_some() {
        return Err(Failure::new(FailureKind::Usage, format!("`{name}` names an image, and not a place"))
            .hint(format!("write `{}`; `godwit images forget` lets go of one", name.whole())));
    }
    let identities = sealing::read_identities(&wanted.gc.identities)?;
    let place = existing(name, cancel)?;
    let dry_run = wanted.gc.dry_run;
    let collected = let_go(&host_of(args), &place, &[], Keys(identities.as_ref()), dry_run)?;
    if draw.is_json() {
        let mut line = amounts(&collected);
        line["message_type"] = "place_collected".into();
        line["place"] = name.to_string().into();
        line["dry_run"] = dry_run.into();
        draw.json_line(&line);
    } else {
        tell(&collected, dry_run, draw);
    }
    Ok(0)
}

/// After something was put into a place: lets go there of what a policy does not keep, of those images that it is about.
///
/// # Errors
/// When the place says no, or has something encrypted that is needed to know.
pub fn apply(
    host: &ThisHost<'_>,
    place: &Place,
    policy: Policy,
    is_about: &dyn Fn(&Image) -> bool,
    draw: &Draw,
) -> Result<(), Failure> {
    if policy.is_empty() {
        return Ok(());
    }
    let what = "it is there, and nothing was forgotten";
    let rule = Rule { policy, expire: None };
    let judged = judge(place, Keys(None), &rule, is_about);
    let judged = judged.map_err(|error| failure(what, &error, host.root))?;
    let collected = let_go(host, place, &judged, Keys(None), false)?;
    say(place.name(), &judged, &collected, false, draw);
    Ok(())
}

/// The place; what cannot go together is refused.
fn refuse(images: &[PlaceName], rule: &Rule) -> Result<PlaceName, Failure> {
    let name = images[0].whole();
    if images.iter().any(|image| image.whole() != name) {
        return Err(Failure::new(FailureKind::Usage, "these are several places").hint("name one at a time"));
    }
    if images.iter().any(|image| image.image.is_none()) == rule.is_empty()
        || !rule.is_empty() && images.len() > 1
    {
        let message = "either images are named, as `PLACE#IMAGE`, or a place, with `--keep-…` or `--expire`";
        return Err(Failure::new(FailureKind::Usage, message)
            .hint("nothing is forgotten by a policy that keeps nothing; `godwit images ls PLACE` shows what is there"));
    }
    Ok(name)
}

fn existing(name: &PlaceName, cancel: &Cancel) -> Result<Place, Failure> {
    let place = object_storage::open(&name.whole(), cancel)?;
    let failed = |error| failure(&format!("`{name}` cannot be read"), &error, Path::new(""));
    match place.is_claimed().map_err(failed)? {
        true => Ok(place),
        false => {
            let message = format!("there is nothing of godwit's in `{name}`");
            Err(Failure::new(FailureKind::NotFound, message))
        }
    }
}

/// The images that are meant by their names.
fn named(place: &Place, names: &[PlaceName]) -> Result<Vec<(Image, Vec<String>)>, PlaceError> {
    let there = place::images(place)?;
    let mut meant = Vec::new();
    for digits in names.iter().filter_map(|name| name.image.as_ref()) {
        let mut found = there.iter().filter(|(_, manifest)| manifest.to_string().starts_with(digits));
        let (first, second) = (found.next(), found.next());
        let (kind, manifest) =
            *first.ok_or_else(|| PlaceError::NoImage(format!("image `{digits}` in it")))?;
        if second.is_some() {
            return Err(PlaceError::NoImage(format!("one image `{digits}` in it: several begin so")));
        }
        meant.push((Image { kind, manifest, volume: None, made_unix_us: 0, is_stash: false }, vec![]));
    }
    Ok(meant)
}

/// Why each image of a place stays, of those that it is about: the checkpoints together, and each volume's snapshots.
fn judge(
    place: &Place,
    keys: Keys<'_>,
    rule: &Rule,
    is_about: &dyn Fn(&Image) -> bool,
) -> Result<Vec<(Image, Vec<String>)>, PlaceError> {
    let mut groups: BTreeMap<Option<String>, Vec<Image>> = BTreeMap::new();
    for (kind, manifest) in place::images(place)? {
        let index = match place.index(kind, manifest, keys) {
            // somebody else has let go of it meanwhile
            Err(PlaceError::NoImage(_)) => continue,
            index => index?,
        };
        let made_unix_us = match object_storage::made_us(&index) {
            0 => unix_s(place.written(kind, manifest)?) * 1_000_000,
            made => made,
        };
        let is_stash = index.fact("cause") == Some("stash");
        let volume = (kind == Kind::Snapshot).then(|| index.fact("volume").unwrap_or_default().to_owned());
        let image = Image { kind, manifest, volume, made_unix_us, is_stash };
        if is_about(&image) {
            groups.entry(image.volume.clone()).or_default().push(image);
        }
    }
    let now = unix_s(SystemTime::now());
    Ok(groups.into_values().flat_map(|images| rule.judge(images, now)).collect())
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Lets go of those without a reason, and of what nobody needs any more.
fn let_go(
    host: &ThisHost<'_>,
    place: &Place,
    judged: &[(Image, Vec<String>)],
    keys: Keys<'_>,
    dry_run: bool,
) -> Result<Collected, Failure> {
    let forget: Vec<(Kind, Digest)> = judged
        .iter()
        .filter(|(_, why)| why.is_empty())
        .map(|(image, _)| (image.kind, image.manifest))
        .collect();
    let (ledgers, bar) = (object_storage::ledgers_of(host.root), &host.bar);
    bar.set_prefix("Looking");
    let order = Collection { forget: &forget, keys, ledgers: &ledgers, dry_run };
    let collected = collect(place, &order, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(format!("{done} of {total} images"));
    });
    bar.finish_and_clear();
    let what = format!("not all that nobody needs is gone from `{}`", place.name());
    collected.map_err(|error| failure(&what, &error, host.root))
}

fn failure(what: &str, error: &PlaceError, root: &Path) -> Failure {
    let failure = object_storage::failure(what, error, root);
    match error {
        PlaceError::Damaged { .. } => failure
            .hint("what it needs is not known: let go of it by its name, `godwit images forget PLACE#IMAGE`"),
        _ => failure,
    }
}

fn say(name: &PlaceName, judged: &[(Image, Vec<String>)], collected: &Collected, dry_run: bool, draw: &Draw) {
    let (stay, go): (Vec<_>, Vec<_>) = judged.iter().partition(|(_, why)| !why.is_empty());
    let path = |image: &Image| format!("{}#{}", name.whole(), image.manifest);
    if draw.is_json() {
        let kept: Vec<Value> =
            stay.iter().map(|(image, why)| json!({ "path": path(image), "reasons": why })).collect();
        let gone: Vec<String> = go.iter().map(|(image, _)| path(image)).collect();
        let mut line = amounts(collected);
        line["message_type"] = "images_forgotten".into();
        line["place"] = name.whole().to_string().into();
        line["dry_run"] = dry_run.into();
        line["forgotten"] = gone.into();
        line["kept"] = kept.into();
        draw.json_line(&line);
        return;
    }
    let does = if dry_run { "would go" } else { "gone" };
    let row = |image: &Image, said: String| {
        let short = &image.manifest.to_string()[..DIGITS];
        vec![
            format!("{}#{short}", name.whole()),
            image.kind.word().to_owned(),
            image.volume.clone().unwrap_or_default(),
            said,
        ]
    };
    let mut rows: Vec<Vec<String>> =
        stay.iter().map(|(image, why)| row(image, format!("stays: {}", why.join(", ")))).collect();
    rows.extend(go.iter().map(|(image, _)| row(image, does.to_owned())));
    match rows.is_empty() {
        true => draw.talk("there are no images of it"),
        false => draw.data(table(&rows).trim_end()),
    }
    tell(collected, dry_run, draw);
}

fn tell(collected: &Collected, dry_run: bool, draw: &Draw) {
    let removed = if dry_run { "would go" } else { "are gone" };
    let bytes = |amount: Amount| show_bytes(amount.bytes);
    draw.talk(&format!(
        "{} {removed} that nobody needed; {} stay",
        bytes(collected.removed),
        bytes(collected.kept)
    ));
    if collected.uploads_removed > 0 {
        let uploads = collected.uploads_removed;
        draw.talk(&format!(
            "uploads in parts that nobody has brought to an end for a day: {uploads} {removed}"
        ));
    }
    if let Some(why) = &collected.uploads_unlisted {
        draw.talk(&format!(
            "uploads in parts that hosts have left which are gone stay there, until a rule of the bucket takes them away: {why}"
        ));
    }
    let waiting = collected.condemned.bytes + collected.waiting.bytes + collected.young.bytes;
    if waiting > 0 {
        draw.talk(&format!(
            "{} more that nobody needs wait for a day, or two: `godwit images gc` takes them away then",
            show_bytes(waiting)
        ));
    }
}

fn amounts(collected: &Collected) -> Value {
    let amount = |amount: Amount| json!({ "packs": amount.packs, "bytes": amount.bytes });
    json!({
        "packs_kept": amount(collected.kept), "packs_young": amount(collected.young),
        "packs_condemned": amount(collected.condemned), "packs_waiting": amount(collected.waiting),
        "packs_removed": amount(collected.removed), "leftovers_removed": collected.leftovers,
        "uploads_removed": collected.uploads_removed, "uploads_young": collected.uploads_young,
        "uploads_unlisted": collected.uploads_unlisted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_old_goes_also_where_the_policy_keeps_it_and_a_stash_never_does() {
        let image = |made_unix_s: u64, is_stash: bool| Image {
            kind: Kind::Snapshot,
            manifest: Digest::of(&made_unix_s.to_le_bytes()),
            volume: None,
            made_unix_us: made_unix_s * 1_000_000,
            is_stash,
        };
        let images = vec![image(100, false), image(300, false), image(5, true), image(200, false)];
        let stay = |last: u32, expire: Option<u64>| {
            let rule = Rule {
                policy: Policy { last, ..Policy::default() },
                expire: expire.map(Duration::from_secs),
            };
            let judged = rule.judge(images.clone(), 400);
            assert_eq!(judged.len(), 3);
            let stay = judged.into_iter().filter(|(_, why)| !why.is_empty());
            stay.map(|(image, _)| image.made_unix_us / 1_000_000).collect::<Vec<_>>()
        };
        assert_eq!(stay(2, None), [300, 200]);
        assert_eq!(stay(2, Some(150)), [300]);
        assert_eq!(stay(0, Some(250)), [300, 200]);
    }
}
