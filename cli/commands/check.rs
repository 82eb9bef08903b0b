//! `godwit check`.

use super::Trouble;
use crate::args::{Args, CheckArgs};
use crate::draw::Draw;
use godwit_migration::{Failure, FailureKind};

pub fn run(_: &Args, _: &CheckArgs, _: &Draw) -> Result<u8, Trouble> {
    Err(Failure::new(FailureKind::Missing, "not there yet").into())
}
