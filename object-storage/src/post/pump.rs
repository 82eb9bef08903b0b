//! Carries the bytes of a socket in letters, and those of letters to the socket, until one side ends its stream.
//!
//! The end of one direction is the end of both, as whoever closes here wants to hear nothing more: the other side hears of it, says the
//! same, and each sees that its last letter was taken. Then, and whenever it ends otherwise, each takes away what is left.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::letter::{Letter, MOST};
use super::session::{Lane, Session, Way};
use crate::PlaceError;
use crate::place::AT_ONCE;

/// Most letters with content that lie there and are not acknowledged.
pub(crate) const WINDOW: u64 = 16;
/// After so many letters the other side is told that they have come, also when there is nothing else to say.
const OFTEN: u64 = WINDOW / 4;
/// How long bytes are waited for that may go in the same letter.
const GATHERING: Duration = Duration::from_millis(2);
/// Bytes that are read from the socket at once.
const READ: usize = 256 << 10;

/// How often the other side hears something at least.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// After so long without a letter the other side is gone. Longer than requests are made again that fail.
pub(crate) const GONE: Duration = Duration::from_secs(30);
/// How long the other side may take for its last letter, and for taking ours.
const PARTING: Duration = Duration::from_secs(10);
/// How long it may take to take away what is left.
const CLEARING: Duration = Duration::from_secs(10);

/// The first and the longest pause before it is looked once more whether a letter has come.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How many bytes a letter may have: what goes in about a second, so that a slow line carries a sign of life in time.
struct Size(usize);

impl Size {
    const LEAST: usize = 64 << 10;
    const FIRST: usize = 1 << 20;
    const QUICK: Duration = Duration::from_millis(400);
    const SLOW: Duration = Duration::from_millis(1500);

    fn learn(&mut self, bytes: usize, took: Duration) {
        if took > Self::SLOW {
            self.0 = (self.0 / 2).max(Self::LEAST);
        } else if took < Self::QUICK && bytes == self.0 {
            self.0 = (self.0 * 2).min(MOST);
        }
    }
}

/// Why an exchange ended that nobody wanted to end.
pub(crate) type Fate = Arc<OnceLock<String>>;

/// What both directions know of each other.
struct Talk {
    state: Mutex<State>,
    /// There is something that who writes should look at.
    news: Notify,
}

#[derive(Clone, Copy)]
struct State {
    /// Letters that were written.
    sent: u64,
    /// Those of them that have come.
    acknowledged: u64,
    /// Letters of the other side that have come.
    received: u64,
    /// As the other side was told.
    told: u64,
    /// The other side has said its last word.
    has_ended: bool,
    /// When content went or came last.
    moved: Instant,
}

impl Talk {
    fn new(begins: u64) -> Self {
        let moved = Instant::now();
        let state =
            State { sent: begins, acknowledged: 0, received: begins, told: begins, has_ended: false, moved };
        Self { state: Mutex::new(state), news: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until it is looked again: often while things happen.
    fn pause(&self) -> Duration {
        pause_after(self.state().moved.elapsed())
    }
}

/// The pause when nothing has happened for so long.
pub(crate) fn pause_after(quiet: Duration) -> Duration {
    (quiet / 10).clamp(PAUSES.0, PAUSES.1)
}

/// Waits for a letter.
pub(crate) async fn poll(
    lane: &Lane,
    number: u64,
    pause: impl Fn() -> Duration,
) -> Result<Letter, PlaceError> {
    loop {
        if let Some(letter) = lane.get(number).await? {
            return Ok(letter);
        }
        sleep(pause()).await;
    }
}

/// Carries an exchange to its end. `begins`: letters that both have written already; who has written none begins with an empty one, which
/// says that it is there. `fate` is told before the socket is closed.
pub(crate) async fn carry(socket: UnixStream, session: Session, out: Way, begins: u64, fate: Fate) {
    let back = if out == Way::To { Way::Fro } else { Way::To };
    let (out, back) = (session.lane(out), session.lane(back));
    if let Err(why) = exchange(socket, &out, &back, begins, &fate).await {
        tracing::info!(session = session.id, "an exchange of letters ended: {why}");
    }
    // also after a good end: a request that was made again may have put a letter there once more that was read
    match timeout(CLEARING, session.clear()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(session = session.id, "letters may be left over: {error}"),
        Err(_) => {
            tracing::warn!(session = session.id, "letters may be left over: the place does not answer")
        }
    }
}

async fn exchange(
    socket: UnixStream,
    out: &Lane,
    back: &Lane,
    begins: u64,
    fate: &Fate,
) -> Result<(), String> {
    let talk = Talk::new(begins);
    let (mut from, mut to) = socket.into_split();
    let mut writing = std::pin::pin!(write(&mut from, out, &talk, begins == 0));
    let mut reading = std::pin::pin!(read(&mut to, back, &talk, begins));
    let ended = tokio::select! {
        written = &mut writing => match written {
            Ok(()) => timeout(PARTING, reading).await.unwrap_or_else(|_| Err("the other side does not part".into())),
            failed => failed,
        },
        read = &mut reading => match read {
            Ok(()) => timeout(PARTING, writing).await.unwrap_or_else(|_| Err("the last letter cannot be put".into())),
            failed => failed,
        },
    };
    if let Err(why) = &ended {
        // whoever is at the socket asks as soon as it is closed
        let _ = fate.set(why.clone());
        return ended;
    }
    let last = talk.state().sent - 1;
    talk.state().moved = Instant::now();
    let taken = async {
        while !out.is_taken(last).await.map_err(|error| error.to_string())? {
            sleep(talk.pause()).await;
        }
        Ok(())
    };
    timeout(PARTING, taken).await.unwrap_or_else(|_| Err("the last letter was not taken".into()))
}

/// Letters on their way to the place.
struct Uploads<'a> {
    lane: &'a Lane,
    talk: &'a Talk,
    tasks: JoinSet<Result<(usize, Duration), PlaceError>>,
    /// When the last one was begun.
    spoke: Instant,
}

impl Uploads<'_> {
    fn begin(&mut self, body: Vec<u8>, is_last: bool) {
        let (number, acknowledged) = {
            let mut state = self.talk.state();
            if !body.is_empty() {
                state.moved = Instant::now();
            }
            state.sent += 1;
            state.told = state.received;
            (state.sent - 1, state.received)
        };
        self.spoke = Instant::now();
        let (lane, begun) = (self.lane.clone(), Instant::now());
        let letter = Letter { acknowledged, is_last, body };
        self.tasks.spawn(async move {
            lane.put(number, &letter).await?;
            Ok((letter.body.len(), begun.elapsed()))
        });
    }

    /// Waits for the next that is there.
    async fn next(&mut self) -> Option<Result<(usize, Duration), String>> {
        let ended = self.tasks.join_next().await?;
        Some(match ended {
            Ok(put) => put.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        })
    }
}

/// From the socket to the place.
async fn write(from: &mut OwnedReadHalf, lane: &Lane, talk: &Talk, greets: bool) -> Result<(), String> {
    let mut uploads = Uploads { lane, talk, tasks: JoinSet::new(), spoke: Instant::now() };
    let (mut gathered, mut size) = (Vec::new(), Size(Size::FIRST));
    if greets {
        uploads.begin(Vec::new(), false);
    }
    loop {
        let now = *talk.state();
        if now.has_ended {
            // nobody would read it
            gathered.clear();
            break;
        }
        let is_free = uploads.tasks.len() < AT_ONCE;
        if is_free && now.received - now.told >= OFTEN {
            uploads.begin(Vec::new(), false);
            continue;
        }
        let has_room = is_free && now.sent.saturating_sub(now.acknowledged) < WINDOW;
        let is_silent = uploads.tasks.is_empty();
        let silent_until = uploads.spoke + SIGN_OF_LIFE;
        tokio::select! {
            () = talk.news.notified() => {}
            Some(put) = uploads.next() => {
                let (bytes, took) = put?;
                size.learn(bytes, took);
            }
            has_ended = gather(from, &mut gathered, size.0), if has_room => {
                if has_ended {
                    break;
                }
                uploads.begin(std::mem::take(&mut gathered), false);
            }
            () = sleep_until(silent_until), if is_silent => uploads.begin(Vec::new(), false),
        }
    }
    uploads.begin(gathered, true);
    while let Some(put) = uploads.next().await {
        put?;
    }
    Ok(())
}

/// Waits for bytes, and takes what comes with them; whether these are the last. What was read stays in `gathered` when it is called off.
async fn gather(from: &mut OwnedReadHalf, gathered: &mut Vec<u8>, most: usize) -> bool {
    let mut piece = vec![0; READ];
    while gathered.len() < most {
        let room = READ.min(most - gathered.len());
        let reading = from.read(&mut piece[..room]);
        let read = match gathered.is_empty() {
            true => reading.await,
            false => match timeout(GATHERING, reading).await {
                Ok(read) => read,
                Err(_) => return false,
            },
        };
        match read {
            Ok(0) => return true,
            Ok(read) => gathered.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
    false
}

/// From the place to the socket.
async fn read(to: &mut OwnedWriteHalf, lane: &Lane, talk: &Talk, begins: u64) -> Result<(), String> {
    let mut listens = true;
    let mut ahead: VecDeque<JoinHandle<Result<Option<Letter>, PlaceError>>> = VecDeque::new();
    let mut deletions = JoinSet::new();
    let mut next = begins;
    loop {
        let tried = ahead.pop_front();
        let coming = async {
            if let Some(task) = tried
                && let Some(letter) = flatten(task.await)?
            {
                return Ok(letter);
            }
            poll(lane, next, || talk.pause()).await.map_err(|error| error.to_string())
        };
        let gone = || format!("nothing has come from the other side for {} s", GONE.as_secs());
        let letter: Letter = timeout(GONE, coming).await.map_err(|_| gone())??;
        while let Some(deleted) = deletions.try_join_next() {
            flatten(deleted)?;
        }
        let (gone, number) = (lane.clone(), next);
        deletions.spawn(async move { gone.delete(number).await });
        next += 1;
        {
            let mut state = talk.state();
            if letter.acknowledged > state.sent || letter.acknowledged < state.acknowledged {
                return Err("the other side acknowledges what was never written".into());
            }
            state.received = next;
            state.acknowledged = letter.acknowledged;
            state.has_ended = letter.is_last;
            if !letter.body.is_empty() {
                state.moved = Instant::now();
            }
        }
        // in the midst of much more than fits into one letter
        if letter.body.len() >= Size::LEAST {
            while ahead.len() < AT_ONCE {
                let (lane, number) = (lane.clone(), next + ahead.len() as u64);
                ahead.push_back(tokio::spawn(async move { lane.get(number).await }));
            }
        }
        // who closed the socket wants nothing more, but the letters must go
        listens = listens && to.write_all(&letter.body).await.is_ok();
        talk.news.notify_one();
        if letter.is_last {
            break;
        }
    }
    let _ = to.shutdown().await;
    while let Some(deleted) = deletions.join_next().await {
        flatten(deleted)?;
    }
    Ok(())
}

fn flatten<T>(ended: Result<Result<T, PlaceError>, tokio::task::JoinError>) -> Result<T, String> {
    match ended {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
