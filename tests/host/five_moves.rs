//! Containers as people run them with podman and docker: a volume that has a name, one that has none, some that are read-only, a changed
//! layer, limits, and clients that never stop. There and back five times, and what must be the same after each of them.

use crate::hosts::{Hosts, Load, SRC, moved, other};
use crate::inspected::{difference, inspected};
use serde_json::Value;

/// The address of the container.
pub const IP: &str = "10.77.0.100";
const MOVES: usize = 5;

/// What is different with each engine, and each kind of hosts.
pub struct Kept {
    pub engine: &'static str,
    /// Where it has the volumes that have a name.
    pub volumes: &'static str,
    /// Options of `create`: the network, and what else the container has.
    pub options: String,
    /// What the kernel must hold it to; nothing where the hosts' cgroup v2 has no controllers.
    pub limits: &'static [&'static str],
    /// What differs by nature taken from what `inspect` says.
    pub same: fn(Value) -> Value,
    pub assert_nothing_left: fn(&dyn Hosts, &str),
}

/// What works in the container, as user 1000.
pub trait Application {
    /// Puts what it needs into its volume, which is `data` on the source and /data in the container; what the container runs.
    fn prepare(&self, hosts: &dyn Hosts, data: &str) -> String;

    /// Waits until it is in full swing, and has a client in the third place work with it, too.
    fn begin<'a>(&self, hosts: &'a dyn Hosts, data: &str) -> Load<'a>;

    /// Asserts that its clients work still.
    fn assert_at_work(&self, hosts: &dyn Hosts, host: &str, data: &str);

    /// Ends its clients, and asserts that nothing is lost that they were told of, and that no connection broke. `exec` runs a program
    /// in the container.
    fn assert_nothing_lost(&self, hosts: &dyn Hosts, host: &str, data: &str, exec: &str, client: Load);
}

/// The container on a host, as it is seen from outside.
struct Seen {
    shown: Value,
    pid: i64,
    /// Where its volume without a name lies.
    anonymous: String,
}

impl Kept {
    /// Asks the engine of a host.
    fn ask(&self, hosts: &dyn Hosts, host: &str, words: &str) -> String {
        hosts.sh(host, &format!("{} {words}", self.engine))
    }

    fn seen(&self, hosts: &dyn Hosts, host: &str) -> Seen {
        let shown = inspected(hosts, self.engine, host);
        let pid = shown["State"]["Pid"].as_i64().unwrap();
        let mut mounts = shown["Mounts"].as_array().unwrap().iter();
        let anonymous = mounts.find(|mount| mount["Destination"] == "/anonymous").unwrap();
        let anonymous = anonymous["Source"].as_str().unwrap().to_owned();
        Seen { pid, anonymous, shown: (self.same)(shown) }
    }

    /// What of the container's layer is changed, and how many layers its image has.
    fn layers(&self, hosts: &dyn Hosts, host: &str) -> (String, String) {
        let image = "image inspect -f '{{len .RootFS.Layers}}' localhost/redis:test";
        (self.ask(hosts, host, "diff web | sort"), self.ask(hosts, host, image))
    }

    /// Runs it on the source, with what `inspect` and the kernel say of it then.
    fn run(&self, hosts: &dyn Hosts, data: &str, application: &dyn Application) -> Seen {
        for volume in ["--label team=blue data", "fixed"] {
            self.ask(hosts, SRC, &format!("volume create {volume}"));
        }
        let command = application.prepare(hosts, data);
        // a volume that is empty would get the owner that the directory has in the image
        hosts.sh(
            SRC,
            &format!(
                "mkdir -p /srv/ro; echo bound > /srv/ro/file; touch {data}/begun; chown 1000 {data}
                 printf 'root:x:0:0::/root:/bin/sh\\nkeeper:x:1000:1000::/data:/bin/sh\\n' > /srv/passwd
                 cd {}/fixed/_data; echo fixed > file; chown 5:7 file; chmod 6751 file; ln file second; ln -s gone link; truncate -s 9M hole
                 setfattr -n user.note -v here file; setfacl -m u:1000:r second",
                self.volumes
            ),
        );
        let volumes = "-v data:/data -v /anonymous -v fixed:/fixed:ro -v /srv/ro:/ro:ro -v /usr:/usr:ro";
        self.ask(
            hosts,
            SRC,
            &format!(
                "create --name web --user 1000 --restart always {} {volumes} localhost/redis:test {command}",
                self.options
            ),
        );
        // PostgreSQL wants its user to have a name
        self.ask(hosts, SRC, "cp /srv/passwd web:/etc/passwd");
        self.ask(hosts, SRC, "start web");
        let change =
            "echo new > /new; rm /root/.*rc /bin/wget; chmod 700 /srv; cp -a /fixed /anonymous/of-fixed";
        self.ask(hosts, SRC, &format!("exec -u 0 web sh -c '{change}'"));
        let seen = self.seen(hosts, SRC);
        hosts.sh(
            SRC,
            &format!(
                "cp -a {}/fixed/_data /srv/fixed; cp -a {} /srv/anonymous",
                self.volumes, seen.anonymous
            ),
        );
        seen
    }
}

/// What the kernel holds a process to. crun has the tasks in a cgroup of their own in that which systemd makes.
fn limits(hosts: &dyn Hosts, host: &str, pid: i64) -> String {
    hosts.sh(
        host,
        &format!(
            "cgroup=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/{pid}/cgroup)
             for d in $cgroup ${{cgroup%/container}}; do
                case $d in *.scope) echo scope;; esac
                cd $d; for f in memory.max memory.swap.max pids.max cpu.max; do grep -s . $f /dev/null; done
             done; true"
        ),
    )
}

/// What rsync finds different between a directory of the source's and one of a host.
fn rsync(hosts: &dyn Hosts, ours: &str, host: &str, theirs: &str) -> String {
    let judge = "rsync -aHAX --checksum --dry-run --delete --itemize-changes";
    let there = if host == SRC { String::new() } else { format!("{host}:") };
    hosts.sh(SRC, &format!("{judge} {ours}/ {there}{theirs}/"))
}

/// Moves it under load, and looks at it whole each time.
pub fn five_moves(hosts: &dyn Hosts, kept: &Kept, application: &dyn Application) {
    let data = format!("{}/data/_data", kept.volumes);
    let of_fixed = format!("{}/fixed/_data", kept.volumes);
    let seen = kept.run(hosts, &data, application);
    let (before, layers) = (seen.shown, kept.layers(hosts, SRC));
    assert!(layers.0.contains("A /new") && layers.0.contains("D /bin/wget"), "{layers:?}");
    let limited = limits(hosts, SRC, seen.pid);
    for limit in kept.limits {
        assert!(limited.lines().any(|line| line == *limit), "{limit} is not in {limited}");
    }
    let client = application.begin(hosts, &data);
    let reference = format!("{}:web", kept.engine);
    let mut host = SRC;
    for _ in 0..MOVES {
        application.assert_at_work(hosts, host, &data);
        moved(hosts, &reference, host);
        (kept.assert_nothing_left)(hosts, host);
        assert_eq!(hosts.sh(host, "pgrep -au 1000; true"), "");
        host = other(host);
        let seen = kept.seen(hosts, host);
        assert_eq!(difference("", &before, &seen.shown), [""; 0]);
        assert_eq!(limits(hosts, host, seen.pid), limited);
        assert_eq!(kept.layers(hosts, host), layers);
        assert_eq!(rsync(hosts, "/srv/fixed", host, &of_fixed), "");
        assert_eq!(rsync(hosts, "/srv/anonymous", host, &seen.anonymous), "");
        let inside = format!("cd /proc/{}/root; cat new ro/file", seen.pid);
        assert_eq!(hosts.sh(host, &inside), "new\nbound");
        assert_eq!(kept.ask(hosts, host, "volume inspect -f '{{.Labels}}' data"), "map[team:blue]");
    }
    application.assert_nothing_lost(hosts, host, &data, &format!("{} exec web", kept.engine), client);
    kept.ask(hosts, host, "rm -f -v web");
    kept.ask(hosts, host, "volume rm data fixed");
    (kept.assert_nothing_left)(hosts, host);
}
