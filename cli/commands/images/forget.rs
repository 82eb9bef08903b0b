//! `godwit images forget`: of a place, or of what this host's store keeps.

mod kept;
pub mod place;

use crate::args::{Args, ImagesForgetArgs, Location};
use crate::draw::Draw;
use godwit_migration::{Cancel, Failure, FailureKind};

pub fn run(args: &Args, wanted: &ImagesForgetArgs, draw: &Draw, cancel: &Cancel) -> Result<u8, Failure> {
    let places: Vec<_> = wanted
        .images
        .iter()
        .filter_map(|image| match image {
            Location::Place(name) => Some(name.clone()),
            _ => None,
        })
        .collect();
    match places.len() {
        0 => kept::forget(args, wanted, draw),
        several if several == wanted.images.len() => place::forget(args, wanted, &places, draw, cancel),
        _ => {
            let message = "some of these are in a place, and some are not";
            Err(Failure::new(FailureKind::Usage, message).hint("let go of them one after the other"))
        }
    }
}
