//! `godwit park`: keeps what has come before a link was lost, for the next attempt. Started by `godwit receive`.

use super::{Trouble, on_signal};
use godwit_engine::own_program;
use godwit_migration::{Cancel, Failure, FailureKind};
use godwit_restore::{Parking, parked};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

/// For [`Parking`]: it is kept by a process of its own, since `receive` ends with its connection.
pub fn parking(time: Duration) -> Parking {
    Parking::new(time, Box::new(start))
}

fn start(orders: UnixStream) -> io::Result<()> {
    let mut child = Command::new(own_program())
        .arg("park")
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(orders)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // where this process stays
    std::thread::spawn(move || child.wait());
    Ok(())
}

pub fn run() -> Result<u8, Trouble> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(FailureKind::Usage, "`godwit park` is started by `godwit receive`").because_of(error)
    };
    // neither the terminal's nor the connection's end concerns it
    let _ = nix::unistd::setsid();
    let cancel = on_signal(Cancel::hang_up);
    let orders = io::stdin().as_fd().try_clone_to_owned().map_err(|error| failed(&error))?;
    parked::serve(&UnixStream::from(orders), &cancel).map_err(|error| failed(&error))?;
    Ok(0)
}
