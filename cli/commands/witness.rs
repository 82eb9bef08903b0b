//! The witness of a migration: asked whether it is there before anything is touched, and whose the container is when the link is
//! lost.

use super::Trouble;
use super::resume;
use crate::args::{Args, MigrateArgs, ResumeArgs};
use crate::draw::Draw;
use godwit_migration::{Disposition, Failure, FailureKind, MigrationId};
use godwit_witness::{Witness, WitnessPlace};
use std::time::Duration;

/// Plain words only for whoever says so.
///
/// # Errors
/// Which witness would be spoken to in the open.
pub fn refuse_exposed(witness: &WitnessPlace, insecure: bool) -> Result<(), Failure> {
    if !witness.is_exposed() || insecure {
        return Ok(());
    }
    let exposed = format!(
        "the witness `{witness}` is neither encrypted nor authenticated: anybody on the way could have the container run twice"
    );
    Err(Failure::new(FailureKind::Usage, exposed)
        .hint("use `etcds://`, or add `--insecure` if the network to it is yours alone"))
}

/// Asks it something, as it will be asked when all is frozen.
///
/// # Errors
/// When it does not answer, or may not be asked like that.
pub fn examine(command: &MigrateArgs) -> Result<(), Failure> {
    let Some(witness) = &command.witness else { return Ok(()) };
    refuse_exposed(witness, command.insecure)?;
    let nobody_s = MigrationId::generate();
    nobody_s.and_then(|id| witness.holder(&id)).map(drop).map_err(|error| {
        Failure::new(FailureKind::Missing, format!("the witness `{witness}` cannot be asked"))
            .because_of(&error)
            .hint("mend that, name one that both hosts reach, or leave `--witness` out")
    })
}

/// Ends what is in doubt without a person: the destination is called once, then the witness is asked. Gives the exit code when the
/// container has moved.
///
/// # Errors
/// When it stays here, or nobody answers: then it is as much in doubt as before.
pub fn decide(
    args: &Args,
    command: &MigrateArgs,
    id: &MigrationId,
    doubt: Failure,
    draw: &Draw,
) -> Result<u8, Trouble> {
    let to = super::way::written(&command.destination, command.via.as_ref());
    let about = |failure| Trouble::about(failure, &command.container, Some(&to));
    draw.talk(&format!("{doubt}; asking the witness"));
    let order = ResumeArgs {
        migration: Some(id.to_string()),
        keep: None,
        witness: command.witness.clone(),
        insecure: command.insecure,
        timeout: Duration::ZERO,
        remote_command: command.remote_command.clone(),
        forget: false,
    };
    let end = resume::end(&args.global.root, id, &order, draw).map_err(|trouble| about(*trouble.failure))?;
    match end.disposition {
        Disposition::RunningAtDestination => Ok(resume::tell(draw, id.as_str(), &end)),
        disposition => {
            let failure = Failure { kind: FailureKind::Failed, hints: Vec::new(), ..doubt };
            Err(about(failure.because(end.text).at(disposition)))
        }
    }
}
