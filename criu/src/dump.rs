//! Dumps and pre-dumps of a process tree that godwit has frozen itself.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_guardian::{Brake, Guardian};
use protobuf::EnumOrUnknown;
use rust_criu::rust_criu_protobuf::rpc::{
    Criu_cg_mode, Criu_network_lock_method, Criu_opts, Criu_page_server_info, Criu_pre_dump_mode,
    Criu_req_type,
};

use crate::binary::CriuBinary;
use crate::error::CriuError;
use crate::images::stats::{self, DumpStats};
use crate::log;
use crate::session::{Bind, Notify, NotifyAnswer, Session, SessionOptions, expect_success, request_of};

/// Log of a dump, in the work directory.
pub const DUMP_LOG: &str = "dump.log";
/// Log of a pre-dump, in the work directory.
pub const PRE_DUMP_LOG: &str = "pre-dump.log";

/// Where a dump sends its pages instead of writing them.
#[derive(Debug)]
pub enum PageServer {
    /// A connected stream socket.
    Socket(OwnedFd),
    /// A TCP address. CRIU corks the socket: its last message may lie there for 200 ms, so prefer a socket.
    Address {
        /// Host name or address.
        address: String,
        /// TCP port.
        port: u16,
    },
}

/// What to dump, where to, and how. Always `manage_cgroups ignore` and `network_lock skip`: cgroups and the network lock
/// are godwit's own.
#[derive(Debug)]
pub struct DumpOptions {
    /// Root of the tree to dump.
    pub pid: i32,
    /// Gets the images; made with mode 0700 when missing.
    pub images_dir: PathBuf,
    /// Gets log and statistics; made with mode 0700 when missing.
    pub work_dir: PathBuf,
    /// Leave the tasks alive (frozen when they were frozen before). Without it CRIU kills them at the end.
    pub leave_running: bool,
    /// Directory of the tasks' freezer cgroup. Needed when it is frozen: on cgroup v2 CRIU hangs and the leader dies without it.
    pub freeze_cgroup: Option<PathBuf>,
    /// Dump established TCP connections.
    pub tcp_established: bool,
    /// Leave out the data of connections that are being made.
    pub tcp_skip_in_flight: bool,
    /// Allow unix sockets whose peer is outside the tree.
    pub ext_unix_sk: bool,
    /// Allow a session or terminal that belongs outside the tree.
    pub shell_job: bool,
    /// Dump file locks.
    pub file_locks: bool,
    /// Allow hard links to be made for open files that were deleted but have other names.
    pub link_remap: bool,
    /// Accept a terminal whose master is outside the tree.
    pub orphan_pts_master: bool,
    /// External resources: `mnt[/DEST]:KEY`, `net[INODE]:KEY`, `unix[INODE]`, ...
    pub external: Vec<String>,
    /// Mount points left out.
    pub skip_mnt: Vec<String>,
    /// File systems dumped although CRIU does not know them.
    pub enable_fs: Vec<String>,
    /// Track memory changes (soft-dirty) for the next round.
    pub track_mem: bool,
    /// The previous round's images, relative to `images_dir` (`../1`).
    pub parent_dir: Option<String>,
    /// Pre-dump: read pages with process_vm_readv after the tasks run again, instead of splicing them into pipes.
    pub pre_dump_vm_read: bool,
    /// Largest deleted file taken into the images, bytes.
    pub ghost_limit: u32,
    /// How long CRIU may take to seize and freeze the tasks; whole seconds, at least 1.
    pub timeout: Duration,
    /// How long CRIU may take for everything.
    pub deadline: Duration,
    /// CRIU's log level, 0 to 4.
    pub log_level: i32,
    /// Sends the pages away.
    pub page_server: Option<PageServer>,
    /// cgroup directories CRIU itself runs in; must not be frozen.
    pub criu_cgroups: Vec<PathBuf>,
    /// Variables CRIU's environment has besides ours.
    pub env: Vec<(OsString, OsString)>,
    /// A file that CRIU, and only CRIU, sees in another's place.
    pub bind: Option<Bind>,
    /// Holds the tasks, which are frozen in `freeze_cgroup`, if CRIU is killed in a dump.
    pub guardian: Option<Arc<Guardian>>,
}

impl DumpOptions {
    /// Options of a migration's dump of the tree at `pid`: left running, with TCP, locks, and everything that containers use.
    pub fn new(pid: i32, images_dir: impl Into<PathBuf>, work_dir: impl Into<PathBuf>) -> Self {
        DumpOptions {
            pid,
            images_dir: images_dir.into(),
            work_dir: work_dir.into(),
            leave_running: true,
            freeze_cgroup: None,
            tcp_established: true,
            tcp_skip_in_flight: false,
            ext_unix_sk: true,
            shell_job: false,
            file_locks: true,
            link_remap: true,
            orphan_pts_master: false,
            external: Vec::new(),
            skip_mnt: Vec::new(),
            enable_fs: Vec::new(),
            track_mem: false,
            parent_dir: None,
            pre_dump_vm_read: false,
            ghost_limit: 64 << 20,
            timeout: Duration::from_secs(10),
            deadline: Duration::from_secs(300),
            log_level: 3,
            page_server: None,
            criu_cgroups: Vec::new(),
            env: Vec::new(),
            bind: None,
            guardian: None,
        }
    }

    /// The same again, for another attempt: all but the page server, whose socket is used once.
    #[must_use]
    pub fn again(&self) -> DumpOptions {
        DumpOptions {
            images_dir: self.images_dir.clone(),
            work_dir: self.work_dir.clone(),
            freeze_cgroup: self.freeze_cgroup.clone(),
            external: self.external.clone(),
            skip_mnt: self.skip_mnt.clone(),
            enable_fs: self.enable_fs.clone(),
            parent_dir: self.parent_dir.clone(),
            page_server: None,
            criu_cgroups: self.criu_cgroups.clone(),
            env: self.env.clone(),
            bind: self.bind.clone(),
            guardian: self.guardian.clone(),
            ..*self
        }
    }

    /// Starts the CRIU process for one [`Dump`] with these options.
    pub fn start(mut self, criu: &CriuBinary) -> Result<Dump, CriuError> {
        let session = self.start_session(criu)?;
        Dump::over(session, self)
    }

    /// Starts CRIU as a dump with these options needs it, under the guardian's eyes.
    pub(crate) fn start_session(&mut self, criu: &CriuBinary) -> Result<Session, CriuError> {
        let mut session = Session::start(criu, self.session_options())?;
        if let Some(guardian) = &self.guardian {
            session.watch(guardian);
        }
        Ok(session)
    }

    /// What the CRIU process of this dump starts with; taken out of the options.
    pub(crate) fn session_options(&mut self) -> SessionOptions {
        let (pass, page_server) = match self.page_server.take() {
            Some(PageServer::Socket(fd)) => (vec![fd], None),
            other => (Vec::new(), other),
        };
        self.page_server = page_server;
        SessionOptions {
            cgroups: self.criu_cgroups.clone(),
            pass,
            env: std::mem::take(&mut self.env),
            bind: self.bind.take(),
        }
    }
}

/// What a dump gave.
#[derive(Debug, Clone)]
pub struct DumpReport {
    /// CRIU's own numbers; `None` when it wrote none.
    pub stats: Option<DumpStats>,
    /// From the request to CRIU's exit.
    pub wall: Duration,
}

/// A started CRIU that waits for its dump request.
#[derive(Debug)]
pub struct Dump {
    session: Session,
    options: DumpOptions,
}

impl Dump {
    /// A dump by a CRIU that was started with the [`DumpOptions::session_options`] of such a dump.
    pub(crate) fn over(session: Session, options: DumpOptions) -> Result<Dump, CriuError> {
        make_private_dir(&options.images_dir)?;
        make_private_dir(&options.work_dir)?;
        Ok(Dump { session, options })
    }

    /// CRIU's process id.
    pub fn criu_pid(&self) -> Option<u32> {
        self.session.pid()
    }

    /// Dumps. When it returns, CRIU has exited (so a commit may follow).
    pub fn dump(self, notify: &mut dyn FnMut(&Notify) -> NotifyAnswer) -> Result<DumpReport, CriuError> {
        self.run("dump", Criu_req_type::DUMP, DUMP_LOG, notify)
    }

    /// Pre-dumps: the tasks' memory only, and they go on.
    pub fn pre_dump(self, notify: &mut dyn FnMut(&Notify) -> NotifyAnswer) -> Result<DumpReport, CriuError> {
        self.run("pre-dump", Criu_req_type::SINGLE_PRE_DUMP, PRE_DUMP_LOG, notify)
    }

    fn run(
        mut self,
        operation: &'static str,
        kind: Criu_req_type,
        log_name: &str,
        notify: &mut dyn FnMut(&Notify) -> NotifyAnswer,
    ) -> Result<DumpReport, CriuError> {
        let log_file = self.options.work_dir.join(log_name);
        log::put_aside(&log_file)
            .map_err(CriuError::io(format!("cannot rename `{}`", log_file.display())))?;
        remove_stale(&self.options.work_dir.join(stats::DUMP_FILE))?;
        let places = Places::open(&self.options.images_dir, &self.options.work_dir)?;
        let opts = self.request_options(&places, log_name)?;
        if kind == Criu_req_type::DUMP {
            self.arm();
        }
        let started = Instant::now();
        let answer =
            self.session.request(operation, &request_of(kind, Some(opts)), self.options.deadline, notify);
        let answer = self.session.conclude(answer);
        expect_success(operation, kind, answer, Some(&log_file))?;
        let wall = started.elapsed();
        let stats = stats::read_dump(&self.options.work_dir)?;
        Ok(DumpReport { stats, wall })
    }

    /// The tasks of a pre-dump ran before it, and may run on when CRIU dies; those of a dump may not.
    fn arm(&mut self) {
        let (Some(dir), Some(_)) = (&self.options.freeze_cgroup, &self.options.guardian) else { return };
        match Brake::of(dir) {
            Ok(brake) => self.session.arm(brake),
            Err(error) => tracing::warn!(%error, cgroup = %dir.display(), "criu works without a guardian"),
        }
    }

    fn request_options(&self, places: &Places, log_name: &str) -> Result<Criu_opts, CriuError> {
        let from = &self.options;
        let mut opts = places.options(log_name, from.log_level);
        if from.pid <= 0 {
            // CRIU takes a missing pid for "dump the caller".
            return Err(CriuError::Protocol {
                operation: "dump",
                detail: format!("pid {} is none", from.pid),
            });
        }
        opts.set_pid(from.pid);
        opts.set_leave_running(from.leave_running);
        opts.set_tcp_established(from.tcp_established);
        opts.set_tcp_skip_in_flight(from.tcp_skip_in_flight);
        opts.set_ext_unix_sk(from.ext_unix_sk);
        opts.set_shell_job(from.shell_job);
        opts.set_file_locks(from.file_locks);
        opts.set_link_remap(from.link_remap);
        opts.set_orphan_pts_master(from.orphan_pts_master);
        opts.set_track_mem(from.track_mem);
        opts.set_ghost_limit(from.ghost_limit);
        opts.set_timeout(u32::try_from(from.timeout.as_secs().max(1)).unwrap_or(u32::MAX));
        if let Some(dir) = &from.freeze_cgroup {
            opts.set_freeze_cgroup(path_text(dir)?.to_owned());
        }
        if let Some(parent) = &from.parent_dir {
            opts.set_parent_img(parent.clone());
        }
        if from.pre_dump_vm_read {
            opts.set_pre_dump_mode(Criu_pre_dump_mode::VM_READ);
        }
        opts.external.clone_from(&from.external);
        opts.skip_mnt.clone_from(&from.skip_mnt);
        opts.enable_fs.clone_from(&from.enable_fs);
        let mut ps = Criu_page_server_info::new();
        match (&from.page_server, self.session.passed().first()) {
            (_, Some(number)) => {
                ps.set_fd(*number);
                opts.ps = Some(ps).into();
            }
            (Some(PageServer::Address { address, port }), None) => {
                ps.set_address(address.clone());
                ps.set_port(i32::from(*port));
                opts.ps = Some(ps).into();
            }
            _ => {}
        }
        Ok(opts)
    }
}

/// Starts CRIU and dumps.
pub fn dump(
    criu: &CriuBinary,
    options: DumpOptions,
    notify: &mut dyn FnMut(&Notify) -> NotifyAnswer,
) -> Result<DumpReport, CriuError> {
    options.start(criu)?.dump(notify)
}

/// Starts CRIU and pre-dumps. Needs a kernel with soft-dirty; leave `track_mem` on.
pub fn pre_dump(
    criu: &CriuBinary,
    options: DumpOptions,
    notify: &mut dyn FnMut(&Notify) -> NotifyAnswer,
) -> Result<DumpReport, CriuError> {
    options.start(criu)?.pre_dump(notify)
}

/// The images and work directories, held open: CRIU reopens them through `/proc/<our pid>/fd` (cr-service.c).
pub(crate) struct Places {
    images: File,
    work: File,
}

impl Places {
    pub(crate) fn open(images: &Path, work: &Path) -> Result<Self, CriuError> {
        let open =
            |dir: &Path| File::open(dir).map_err(CriuError::io(format!("cannot open `{}`", dir.display())));
        Ok(Places { images: open(images)?, work: open(work)? })
    }

    /// Options every dump and restore has. They refer to `self`, which must live until the answer.
    pub(crate) fn options(&self, log_name: &str, log_level: i32) -> Criu_opts {
        let mut opts = Criu_opts::new();
        opts.set_images_dir_fd(self.images.as_raw_fd());
        opts.set_work_dir_fd(self.work.as_raw_fd());
        opts.set_log_file(log_name.to_owned());
        opts.set_log_level(log_level);
        opts.set_notify_scripts(true);
        opts.manage_cgroups_mode = Some(EnumOrUnknown::new(Criu_cg_mode::IGNORE));
        opts.set_network_lock(Criu_network_lock_method::SKIP);
        opts
    }
}

/// Makes `dir` and its missing parents, for root only.
pub(crate) fn make_private_dir(dir: &Path) -> Result<(), CriuError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(CriuError::io(format!("cannot make `{}`", dir.display())))
}

/// Removes what an earlier attempt left, so that it is not taken for this one's.
pub(crate) fn remove_stale(file: &Path) -> Result<(), CriuError> {
    match std::fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(CriuError::io(format!("cannot remove `{}`", file.display()))(e))
        }
        _ => Ok(()),
    }
}

/// The path as the text an RPC string field needs.
pub(crate) fn path_text(path: &Path) -> Result<&str, CriuError> {
    path.to_str().ok_or_else(|| {
        CriuError::io(format!("cannot pass `{}` to criu", path.display()))(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "not valid UTF-8",
        ))
    })
}
