//! Restores of a process tree.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_guardian::{Brake, Guardian};
use rust_criu::rust_criu_protobuf::rpc::{Criu_opts, Criu_req_type, Inherit_fd};

use crate::binary::CriuBinary;
use crate::dump::{Places, make_private_dir, path_text, remove_stale};
use crate::error::CriuError;
use crate::images::stats::{self, RestoreStats};
use crate::log;
use crate::session::{Notify, NotifyAnswer, Session, SessionOptions, expect_success, request_of};

/// Log of a restore, in the work directory.
pub const RESTORE_LOG: &str = "restore.log";

/// What to restore and how. Always `manage_cgroups ignore`, `network_lock skip`, detached, without a pidfile (an old one
/// makes CRIU fail late).
#[derive(Debug)]
pub struct RestoreOptions {
    /// The images.
    pub images_dir: PathBuf,
    /// Gets log and statistics, and holds `lazy-pages.socket`; made with mode 0700 when missing.
    pub work_dir: PathBuf,
    /// The new root of the tree's mount namespace.
    pub root: Option<PathBuf>,
    /// Restore established TCP connections.
    pub tcp_established: bool,
    /// Restore listening sockets only, closing the connections.
    pub tcp_close: bool,
    /// Allow unix sockets whose peer is outside the tree.
    pub ext_unix_sk: bool,
    /// Allow a session or terminal that belongs outside the tree.
    pub shell_job: bool,
    /// Restore file locks.
    pub file_locks: bool,
    /// As in the dump.
    pub link_remap: bool,
    /// The terminal's master is made outside: its descriptor comes with the `orphan-pts-master` question.
    pub orphan_pts_master: bool,
    /// External resources: `mnt[KEY]:/path`, `veth[...]`, ...
    pub external: Vec<String>,
    /// Descriptors handed in, each under its key: `pipe:[INODE]`, `extRootNetNS`, `socket:[INODE]`, ...
    pub inherit_fd: Vec<(OwnedFd, String)>,
    /// Mount points left out.
    pub skip_mnt: Vec<String>,
    /// The restored root becomes our child instead of an orphan.
    pub sibling: bool,
    /// Fill lazy-capable memory on demand, through `lazy-pages.socket` in the work directory.
    pub lazy_pages: bool,
    /// Security profile instead of the dumped one (`apparmor:NAME`, `selinux:LABEL`).
    pub lsm_profile: Option<String>,
    /// How long CRIU may take.
    pub deadline: Duration,
    /// CRIU's log level, 0 to 4.
    pub log_level: i32,
    /// cgroup directories CRIU starts in, which the restored tasks inherit.
    pub criu_cgroups: Vec<PathBuf>,
    /// Holds the tasks with the brake of their cgroup if CRIU is killed.
    pub guardian: Option<(Arc<Guardian>, Brake)>,
}

impl RestoreOptions {
    /// The counterparts of [`DumpOptions::new`](crate::DumpOptions::new).
    pub fn new(images_dir: impl Into<PathBuf>, work_dir: impl Into<PathBuf>) -> Self {
        RestoreOptions {
            images_dir: images_dir.into(),
            work_dir: work_dir.into(),
            root: None,
            tcp_established: true,
            tcp_close: false,
            ext_unix_sk: true,
            shell_job: false,
            file_locks: true,
            link_remap: true,
            orphan_pts_master: false,
            external: Vec::new(),
            inherit_fd: Vec::new(),
            skip_mnt: Vec::new(),
            sibling: false,
            lazy_pages: false,
            lsm_profile: None,
            deadline: Duration::from_secs(300),
            log_level: 3,
            criu_cgroups: Vec::new(),
            guardian: None,
        }
    }

    /// Starts the CRIU process for one [`Restore`] with these options.
    pub fn start(mut self, criu: &CriuBinary) -> Result<Restore, CriuError> {
        make_private_dir(&self.work_dir)?;
        let (pass, keys) = std::mem::take(&mut self.inherit_fd).into_iter().unzip();
        let mut session = Session::start(
            criu,
            SessionOptions { cgroups: self.criu_cgroups.clone(), pass, ..Default::default() },
        )?;
        if let Some((guardian, brake)) = self.guardian.take() {
            session.watch(&guardian);
            session.arm(brake);
        }
        Ok(Restore { session, keys, options: self })
    }
}

/// What a restore gave.
#[derive(Debug, Clone)]
pub struct RestoreReport {
    /// The restored root task, in our pid namespace.
    pub pid: i32,
    /// CRIU's own numbers; `None` when it wrote none.
    pub stats: Option<RestoreStats>,
    /// From the request to CRIU's exit.
    pub wall: Duration,
}

/// A started CRIU that waits for its restore request.
#[derive(Debug)]
pub struct Restore {
    session: Session,
    keys: Vec<String>,
    options: RestoreOptions,
}

impl Restore {
    /// CRIU's process id.
    pub fn criu_pid(&self) -> Option<u32> {
        self.session.pid()
    }

    /// Restores. `notify` sees `setup-namespaces`, `post-restore`, `pre-resume`, ... with the root task's pid; freezing the
    /// cgroup at `pre-resume` (CRIU itself being outside of it) holds the tree before its first instruction.
    pub fn restore(
        mut self,
        notify: &mut dyn FnMut(&Notify) -> NotifyAnswer,
    ) -> Result<RestoreReport, CriuError> {
        const OPERATION: &str = "restore";
        let log_file = self.options.work_dir.join(RESTORE_LOG);
        log::put_aside(&log_file)
            .map_err(CriuError::io(format!("cannot rename `{}`", log_file.display())))?;
        remove_stale(&self.options.work_dir.join(stats::RESTORE_FILE))?;
        let places = Places::open(&self.options.images_dir, &self.options.work_dir)?;
        let opts = self.request_options(&places)?;
        let started = Instant::now();
        let request = request_of(Criu_req_type::RESTORE, Some(opts));
        let answer = self.session.request(OPERATION, &request, self.options.deadline, notify);
        let answer = self.session.conclude(answer);
        let resp = expect_success(OPERATION, Criu_req_type::RESTORE, answer, Some(&log_file))?;
        let pid = resp.restore.pid.filter(|pid| *pid > 0).ok_or_else(|| CriuError::Protocol {
            operation: OPERATION,
            detail: "success without a pid".into(),
        })?;
        let wall = started.elapsed();
        Ok(RestoreReport { pid, stats: stats::read_restore(&self.options.work_dir)?, wall })
    }

    fn request_options(&self, places: &Places) -> Result<Criu_opts, CriuError> {
        let from = &self.options;
        let mut opts = places.options(RESTORE_LOG, from.log_level);
        if let Some(root) = &from.root {
            opts.set_root(path_text(root)?.to_owned());
        }
        opts.set_tcp_established(from.tcp_established);
        opts.set_tcp_close(from.tcp_close);
        opts.set_ext_unix_sk(from.ext_unix_sk);
        opts.set_shell_job(from.shell_job);
        opts.set_file_locks(from.file_locks);
        opts.set_link_remap(from.link_remap);
        opts.set_orphan_pts_master(from.orphan_pts_master);
        opts.set_rst_sibling(from.sibling);
        opts.set_lazy_pages(from.lazy_pages);
        if let Some(profile) = &from.lsm_profile {
            opts.set_lsm_profile(profile.clone());
        }
        opts.external.clone_from(&from.external);
        opts.skip_mnt.clone_from(&from.skip_mnt);
        for (key, number) in self.keys.iter().zip(self.session.passed()) {
            let mut inherit = Inherit_fd::new();
            inherit.set_key(key.clone());
            inherit.set_fd(*number);
            opts.inherit_fd.push(inherit);
        }
        Ok(opts)
    }
}

/// Starts CRIU and restores.
pub fn restore(
    criu: &CriuBinary,
    options: RestoreOptions,
    notify: &mut dyn FnMut(&Notify) -> NotifyAnswer,
) -> Result<RestoreReport, CriuError> {
    options.start(criu)?.restore(notify)
}
