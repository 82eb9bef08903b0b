//! What happens in a cell of the matrix, and where.

use super::{HOLD, ORDER, hold, oom, patient::Kind};
use crate::bed::{Bed, DST, SRC};
use std::fmt;

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to godwit itself, on whose journal the line is.
    Kill,
    /// The line cannot be written.
    Enospc,
    Eio,
    /// While godwit waits there: SIGKILL to every CRIU of the host,
    KillCriu,
    /// to every runtime,
    KillRuntime,
    /// to the handler of page faults at the destination,
    KillHandler,
    /// the same by the kernel, that has no memory left for it,
    Oom,
    /// to the ssh that carries the wire.
    Cut,
    /// Nothing of the wire arrives any more, and nobody is told; the link is back when `resume` runs.
    Freeze,
    /// Both godwits at once.
    KillBoth,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Kill => "godwit is killed",
            Fault::Enospc => "ENOSPC",
            Fault::Eio => "EIO",
            Fault::KillCriu => "criu is killed",
            Fault::KillRuntime => "the runtime is killed",
            Fault::KillHandler => "the handler is killed",
            Fault::Oom => "the handler is killed by the OOM killer",
            Fault::Cut => "the connection is cut",
            Fault::Freeze => "the connection is frozen",
            Fault::KillBoth => "both godwits are killed",
        })
    }
}

/// One cell.
pub struct Cell {
    pub role: &'static str,
    pub event: &'static str,
    pub edge: &'static str,
    pub fault: Fault,
    /// What is moved.
    pub patient: Kind,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, event, edge, fault, patient } = self;
        write!(f, "{patient}: {role} {event} {edge}: {fault}")
    }
}

impl Cell {
    /// On which host the line is written.
    pub fn host(&self) -> &'static str {
        if self.role == "source" { SRC } else { DST }
    }

    /// Whether it belongs to the part that is always run: each line and each fault once, those about the commit twice.
    pub fn is_quick(&self) -> bool {
        match self.patient {
            Kind::Postgres => return self.edge == "after" && ["committed", "going"].contains(&self.event),
            Kind::PodmanRedis | Kind::PodRedis | Kind::DockerRedis => {
                let told = ["prepared", "frozen", "restoring", "restored", "committed", "going"];
                return self.fault == Fault::Kill && told.contains(&self.event);
            }
            Kind::Redis | Kind::LargeRedis => {}
        }
        match self.fault {
            Fault::Kill => self.edge == "after" || ["committed", "going"].contains(&self.event),
            Fault::Enospc => ["frozen", "committed", "restored", "going"].contains(&self.event),
            Fault::Eio => false,
            Fault::Freeze => (self.role, self.event) == ("source", "committed"),
            Fault::Cut => ["round", "restored", "committed"].contains(&self.event),
            _ => self.edge == "after",
        }
    }

    /// What godwit is told to do there.
    pub fn action(&self) -> String {
        match self.fault {
            Fault::Kill => "kill".into(),
            Fault::Enospc => "enospc".into(),
            Fault::Eio => "eio".into(),
            _ => format!("hold {HOLD}"),
        }
    }

    /// Tells godwit on that host to do so.
    pub fn order(&self, bed: &Bed) {
        let Self { role, event, edge, .. } = self;
        bed.sh(self.host(), &format!("mkdir -p {HOLD}; rm -f {HOLD}/*"));
        bed.write(self.host(), ORDER, &format!("{role} {event} {edge} {}\n", self.action()));
    }

    /// Waits until godwit holds there; false when it never came there, or when there was nothing left to be done to it.
    pub fn hold(&self, bed: &Bed) -> bool {
        if ![Fault::KillHandler, Fault::Oom].contains(&self.fault) {
            return hold(bed, self.host());
        }
        // it must not come to the end of its work meanwhile
        let stop = format!(
            "p=; until [ -e {HOLD}/reached ]; do
                [ -n \"$p\" ] || p=$(pgrep -o -f '[g]odwit fill'); sleep 0.001
            done; kill -STOP ${{p:-none}} && ! ls /var/lib/godwit/migrations/*/filled"
        );
        bed.run(DST, &["timeout", "60", "sh", "-c", &stop]).code == 0
    }

    /// What is done from outside while godwit waits.
    pub fn strike(&self, bed: &Bed) {
        let (host, script) = match self.fault {
            Fault::KillCriu => (self.host(), "pkill -KILL -x criu; true"),
            Fault::KillRuntime => (DST, "pkill -KILL -x 'runc|crun'; true"),
            Fault::KillHandler => (DST, "kill -KILL $(pgrep -o -f '[g]odwit fill')"),
            Fault::Oom => return oom::kill_handler(bed),
            Fault::Cut => (SRC, "pkill -KILL -x ssh; true"),
            Fault::Freeze => (
                DST,
                "nft 'table inet frozen { chain input { type filter hook input priority 0; tcp dport 22 drop; }; }'",
            ),
            Fault::KillBoth => (DST, "pkill -KILL -f '[g]odwit receive'; true"),
            Fault::Kill | Fault::Enospc | Fault::Eio => return,
        };
        bed.sh(host, script);
        if self.fault == Fault::KillBoth {
            bed.sh(SRC, "pkill -KILL -f '[g]odwit --json migrate'; true");
        }
    }
}

/// Every one of these faults at every one of these places; redis is moved.
pub fn cells(
    role: &'static str,
    events: &[&'static str],
    edges: &[&'static str],
    faults: &[Fault],
) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &fault in faults {
        for &event in events {
            for &edge in edges {
                cells.push(Cell { role, event, edge, fault, patient: Kind::Redis });
            }
        }
    }
    cells
}
