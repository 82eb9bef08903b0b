//! A tenant: a process whose memory was "restored" without pages, that works on it while it is filled, and knows what every
//! page must hold.

use crate::content::{self, PART_GAP, Random};
use crate::sys::{self, PAGE};
use std::io::BufRead;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// What a tenant is to do; travels in the environment.
#[derive(Clone, Debug)]
pub struct Plan {
    pub vpid: u32,
    pub parts: u64,
    pub part_pages: u64,
    /// Letters: x only what [`exchange`] does, or c cut and rejoin a mapping first of all, f fork, r remove, u unmap, m move; reads and writes always.
    pub operations: String,
    /// How long it works, in ms.
    pub work: u64,
    /// It ends in the middle.
    pub dies: bool,
    pub socket: String,
}

impl Plan {
    pub fn to_text(&self) -> String {
        let Self { vpid, parts, part_pages, operations, work, dies, socket } = self;
        format!("{vpid} {parts} {part_pages} -{operations} {work} {dies} {socket}")
    }

    fn from_text(text: &str) -> Self {
        let words: Vec<&str> = text.split(' ').collect();
        Self {
            vpid: words[0].parse().unwrap(),
            parts: words[1].parse().unwrap(),
            part_pages: words[2].parse().unwrap(),
            operations: words[3].into(),
            work: words[4].parse().unwrap(),
            dies: words[5].parse().unwrap(),
            socket: words[6].into(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Cell {
    Unmapped,
    /// Every word of the page.
    Word(u64),
    /// The first word was written, the others are as they were.
    Written(u64, u64),
}

/// A part of the memory, with one thread: twice as many cells as pages.
#[derive(Clone)]
struct Part {
    start: u64,
    cells: Vec<Cell>,
    /// The other half of a fork's memory is checked there.
    children: Vec<nix::unistd::Pid>,
}

/// The process: hands its memory over, says `ready`, works from `go` on, says `worked`, and after `filled` looks at
/// everything once more.
pub fn run(plan: &str) {
    let plan = Plan::from_text(plan);
    let uffd = sys::userfaultfd();
    for part in 0..plan.parts {
        let start = content::address(part * plan.part_pages, plan.part_pages);
        // Two mappings: a run of pages crosses their border.
        let half = plan.part_pages / 2 * PAGE;
        sys::map(start, plan.part_pages * PAGE);
        sys::split(start + half, plan.part_pages * PAGE - half);
        sys::register(&uffd, start, plan.part_pages * PAGE);
    }
    let socket = UnixStream::connect(&plan.socket).unwrap();
    std::io::Write::write_all(&mut &socket, &plan.vpid.to_ne_bytes()).unwrap();
    sys::send_descriptor(&socket, &uffd);
    drop(uffd);
    // Stays connected, as the root task of a restore.
    let mut lines = std::io::stdin().lock().lines();
    let mut hear = |word: &str| assert_eq!(lines.next().unwrap().unwrap(), word);
    println!("\nready");
    hear("go");
    if plan.operations.contains('x') {
        exchange(&plan);
        println!("\nworked");
        hear("filled");
        println!("\nclean");
        return;
    }
    if plan.operations.contains('c') {
        cut_and_rejoin(&plan);
    }
    if plan.operations.contains('l') {
        latency(&plan);
    }
    let parts: Vec<Part> = (0..plan.parts).map(|part| Part::new(&plan, part)).collect();
    let parts: Vec<Part> = std::thread::scope(|scope| {
        let threads: Vec<_> = parts
            .into_iter()
            .enumerate()
            .map(|(number, part)| {
                let plan = &plan;
                scope.spawn(move || {
                    part.work(plan, Random(0x9e37 + 77 * number as u64 + u64::from(plan.vpid)))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    if plan.dies {
        sys::exit(0);
    }
    println!("\nworked");
    hear("filled");
    for mut part in parts {
        part.check_all(&mut Random(5));
        for child in part.children {
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)), "{status:?}");
        }
    }
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    assert!(
        !smaps.lines().any(|line| line.starts_with("VmFlags:") && line.contains(" um")),
        "still registered"
    );
    println!("\nclean");
}

/// Threads that move a mapping each, to where the kernel finds room: which is where another's was a moment ago.
fn exchange(plan: &Plan) {
    let pages = plan.part_pages / 2;
    let end = Instant::now() + Duration::from_millis(plan.work);
    std::thread::scope(|scope| {
        for part in 0..plan.parts {
            scope.spawn(move || {
                let first = part * plan.part_pages;
                let mut start = content::address(first, plan.part_pages);
                let mut random = Random(part + 1);
                while Instant::now() < end {
                    let room = sys::reserve(pages * PAGE);
                    sys::relocate(start, pages * PAGE, room);
                    start = room;
                    for _ in 0..4 {
                        let page = random.below(pages);
                        let word = sys::read(start + page * PAGE + 8);
                        assert_eq!(
                            word,
                            content::word(plan.vpid, first + page),
                            "page {page} of part {part}"
                        );
                    }
                }
                for page in 0..pages {
                    assert_eq!(
                        sys::read(start + page * PAGE),
                        content::word(plan.vpid, first + page),
                        "page {page} of part {part}"
                    );
                }
            });
        }
    });
}

/// Takes the right to write away from the middle of the last mapping, looks at either side of it, not too near, and gives it back:
/// the mapping must be one again, as it would be without a fill, or mremap(2) of it as a whole fails.
fn cut_and_rejoin(plan: &Plan) {
    let pages = plan.part_pages / 2;
    let first = plan.parts * plan.part_pages - pages;
    let (start, middle) = (content::address(first, plan.part_pages), pages / 2);
    let end = start + pages * PAGE;
    sys::protect(start + middle * PAGE, PAGE, libc::PROT_READ);
    for page in [middle + 1000, middle - 1000] {
        assert_eq!(sys::read(start + page * PAGE), content::word(plan.vpid, first + page));
    }
    sys::protect(start + middle * PAGE, PAGE, libc::PROT_READ | libc::PROT_WRITE);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let whole = format!("{start:x}-{end:x} ");
    assert!(maps.lines().any(|line| line.starts_with(&whole)), "no {whole} in\n{maps}");
}

fn latency(plan: &Plan) {
    let mut random = Random(7);
    let mut times = Vec::new();
    let end = Instant::now() + Duration::from_millis(plan.work);
    while Instant::now() < end {
        let page = random.below(plan.part_pages);
        let start = Instant::now();
        let word = sys::read(content::address(page, plan.part_pages) + 8);
        times.push(start.elapsed().as_nanos() as u64);
        assert_eq!(word, content::word(plan.vpid, page));
        if plan.operations.contains('s') {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    let all = times.len();
    // What took longer than a µs was a fault.
    times.retain(|time| *time > 2000);
    times.sort();
    let at = |part: f64| times.get((times.len() as f64 * part) as usize).copied().unwrap_or(0) as f64 / 1e3;
    let last = times.last().copied().unwrap_or(0) as f64 / 1e3;
    println!(
        "\nfaults: {} of {all} accesses, µs: p50 {:.0} p90 {:.0} p99 {:.0} p99.9 {:.0} max {last:.0}",
        times.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
    );
}

impl Part {
    fn new(plan: &Plan, part: u64) -> Self {
        let first = part * plan.part_pages;
        let mut cells = vec![Cell::Unmapped; (plan.part_pages * PART_GAP) as usize];
        for at in 0..plan.part_pages {
            cells[at as usize] = Cell::Word(content::word(plan.vpid, first + at));
        }
        Self { start: content::address(first, plan.part_pages), cells, children: Vec::new() }
    }

    fn at(&self, cell: usize) -> u64 {
        self.start + cell as u64 * PAGE
    }

    fn work(mut self, plan: &Plan, mut random: Random) -> Self {
        let end = Instant::now() + Duration::from_millis(plan.work);
        while Instant::now() < end {
            for _ in 0..200 {
                let cell = random.below(self.cells.len() as u64) as usize;
                match random.below(4) {
                    0 => self.write(cell, random.below(1 << 40)),
                    _ => self.check(cell),
                }
            }
            let len = 1 + random.below(64) as usize;
            let from = random.below((self.cells.len() - len) as u64) as usize;
            match (random.below(8), plan.operations.as_str()) {
                (0, what) if what.contains('f') && self.children.len() < 6 => self.fork(&mut random),
                (1 | 2, what) if what.contains('r') => self.remove(from, len),
                (3, what) if what.contains('u') => self.unmap(from, len, random.below(2) == 0),
                (4 | 5, what) if what.contains('m') => {
                    let to = random.below((self.cells.len() - len) as u64) as usize;
                    self.relocate(from, len, to);
                }
                _ => {}
            }
            if plan.dies && random.below(30) == 0 {
                sys::exit(0);
            }
        }
        self
    }

    fn check(&self, cell: usize) {
        let at = self.at(cell);
        let words = [0, 8, 2048, 4088].map(|offset| at + offset);
        let (first, others) = match self.cells[cell] {
            Cell::Unmapped => return,
            Cell::Word(word) => (word, word),
            Cell::Written(first, others) => (first, others),
        };
        let got = words.map(sys::read);
        assert_eq!(got, [first, others, others, others], "cell {cell} at {at:#x}");
    }

    fn check_all(&mut self, random: &mut Random) {
        let len = self.cells.len();
        let first = random.below(len as u64) as usize;
        // 7919 is prime: all cells in a jumbled order.
        for at in 0..len {
            self.check((first + at * 7919) % len);
        }
    }

    fn write(&mut self, cell: usize, word: u64) {
        let others = match self.cells[cell] {
            Cell::Unmapped => return,
            Cell::Word(others) | Cell::Written(_, others) => others,
        };
        sys::write(self.at(cell), word);
        self.cells[cell] = Cell::Written(word, others);
    }

    fn is_mapped(&self, from: usize, len: usize) -> bool {
        self.cells[from..from + len].iter().all(|cell| *cell != Cell::Unmapped)
    }

    fn remove(&mut self, from: usize, len: usize) {
        if self.is_mapped(from, len) {
            sys::give_up(self.at(from), len as u64 * PAGE);
            self.cells[from..from + len].fill(Cell::Word(0));
            // At once: now old content could still come back.
            self.check(from + len / 2);
        }
    }

    fn unmap(&mut self, from: usize, len: usize, again: bool) {
        sys::unmap(self.at(from), len as u64 * PAGE);
        self.cells[from..from + len].fill(Cell::Unmapped);
        if again {
            sys::map(self.at(from), len as u64 * PAGE);
            self.cells[from..from + len].fill(Cell::Word(0));
        }
    }

    /// Moves pages; only within one mapping, otherwise mremap moves a part and fails.
    fn relocate(&mut self, from: usize, len: usize, to: usize) {
        let (start, end) = (self.at(from), self.at(from + len));
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let one = maps.lines().any(|line| {
            let (range, _) = line.split_once(' ').unwrap();
            let (low, high) = range.split_once('-').unwrap();
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            hex(low) <= start && end <= hex(high)
        });
        if !one || from.abs_diff(to) < len {
            return;
        }
        sys::relocate(start, len as u64 * PAGE, self.at(to));
        let moved = self.cells[from..from + len].to_vec();
        self.cells[from..from + len].fill(Cell::Unmapped);
        self.cells[to..to + len].copy_from_slice(&moved);
    }

    fn fork(&mut self, random: &mut Random) {
        let seed = random.below(1 << 40);
        match sys::fork() {
            Some(child) => self.children.push(child),
            None => {
                // A failed check may wait for ever, for a lock that another thread held at the fork.
                nix::unistd::alarm::set(60);
                let mut random = Random(seed | 1);
                // A panic must not unwind into the harness of the parent.
                let clean = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    for _ in 0..300 {
                        let cell = random.below(self.cells.len() as u64) as usize;
                        self.write(cell, random.below(1 << 40));
                    }
                    self.check_all(&mut random);
                    let len = self.cells.len() / 8;
                    self.remove(random.below((self.cells.len() - len) as u64) as usize, len);
                    self.check_all(&mut random);
                }));
                sys::exit(i32::from(clean.is_err()));
            }
        }
    }
}
