//! Further connections to the destination, for memory pages.

use crate::order::{Dial, Plan};
use godwit_migration::{Cancel, MigrationId, Observer};
use godwit_transfer::{Bandwidth, Message, PageStreams, Transport, Wire, WireError};

use std::time::Duration;

/// How long a further connection may take to be in the right hands: ssh has to log in.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens what the plan asks for beyond the first connection. Fewer are no failure, and none is none.
pub(crate) fn open(
    dial: Option<&Dial<'_>>,
    migration: &MigrationId,
    plan: &Plan,
    bandwidth: &Bandwidth,
    observer: &dyn Observer,
) -> Option<PageStreams> {
    let dial = dial?;
    let cancel = Cancel::default();
    let mut wires = Vec::new();
    // ssh takes its time to log in: all at once
    let calls: Vec<_> = (1..plan.connections).map(|stream| (stream - 1, dial())).collect();
    for (stream, transport) in calls {
        let joined = transport.map_err(|error| error.to_string()).and_then(|transport| {
            join(transport, migration, stream, cancel.clone()).map_err(|error| error.to_string())
        });
        match joined {
            Ok(mut wire) => {
                wire.set_compression(plan.compress);
                wire.set_bandwidth(bandwidth);
                wires.push(wire);
            }
            Err(why) => {
                observer.note(format!(
                    "connection {} of {} did not come about: {why}",
                    stream + 2,
                    plan.connections
                ));
                break;
            }
        }
    }
    (!wires.is_empty()).then(|| PageStreams::new(wires, cancel))
}

fn join(
    transport: Box<dyn Transport>,
    migration: &MigrationId,
    stream: u16,
    cancel: Cancel,
) -> Result<Wire, WireError> {
    let mut wire = Wire::open(transport, cancel, PATIENCE)?;
    wire.say(&Message::Join { migration: migration.clone(), stream })?;
    wire.expect("joined", |message| match message {
        Message::Joined => Ok(()),
        other => Err(other),
    })?;
    Ok(wire)
}
