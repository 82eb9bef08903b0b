//! Looks at a stream of btrfs-send(8) before btrfs-receive(8) has it: whoever sent it is not believed.
//!
//! The layout is that of fs/btrfs/send.h, version 1: a header of 17 bytes, then commands: length of the attributes (u32), number (u16) and
//! checksum (u32, which btrfs-receive(8) verifies), then attributes: number (u16), length (u16) and value. All are little endian, UUIDs as
//! they are written.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// `BTRFS_SEND_STREAM_MAGIC`, with its zero, and the version.
const HEADER: &[u8; 17] = b"btrfs-stream\0\x01\0\0\0";
/// Bytes before a command's attributes.
const COMMAND: usize = 10;
/// `BTRFS_SEND_BUF_SIZE_V1`: no command is longer.
const LONGEST: usize = 64 << 10;

// `enum btrfs_send_cmd`
const SUBVOL: u16 = 1;
const SNAPSHOT: u16 = 2;
const SYMLINK: u16 = 8;
const CLONE: u16 = 16;
const END: u16 = 21;
/// The last of version 1, `BTRFS_SEND_C_UPDATE_EXTENT`.
const LAST: u16 = 22;

// attributes
const UUID: u16 = 1;
const PATH: u16 = 15;
const PATH_TO: u16 = 16;
const PATH_LINK: u16 = 17;
const CLONE_UUID: u16 = 20;
const CLONE_PATH: u16 = 22;

/// What has gone by of a stream.
#[derive(Debug)]
pub(crate) struct Guard {
    mark: u128,
    /// What it may build upon, and where that lies: read-only.
    parent: Option<(u128, PathBuf)>,
    /// Of a command that is not whole yet.
    pending: Vec<u8>,
    is_begun: bool,
    is_over: bool,
    /// What the subvolume is called in the stream.
    name: Option<PathBuf>,
}

impl Guard {
    pub(crate) fn new(mark: u128, parent: Option<(u128, PathBuf)>) -> Self {
        Self { mark, parent, pending: Vec::new(), is_begun: false, is_over: false, name: None }
    }

    /// The whole commands of what has come, which may go on.
    ///
    /// # Errors
    /// Why the stream is none that was agreed upon. It is over then.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        self.pending.extend_from_slice(bytes);
        let mut pending = std::mem::take(&mut self.pending);
        let mut at = 0;
        if !self.is_begun && pending.len() >= HEADER.len() {
            if !pending.starts_with(HEADER) {
                return Err("it does not begin as a stream of btrfs does, version 1".into());
            }
            (self.is_begun, at) = (true, HEADER.len());
        }
        while self.is_begun
            && let Some((head, rest)) = pending[at..].split_at_checked(COMMAND)
        {
            let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
            if length + COMMAND > LONGEST {
                return Err(format!("a command of {length} bytes"));
            }
            let Some(body) = rest.get(..length) else { break };
            self.command(u16::from_le_bytes([head[4], head[5]]), body)?;
            at += COMMAND + length;
        }
        self.pending = pending.split_off(at);
        Ok(pending)
    }

    /// The name of the subvolume, when all has gone by.
    ///
    /// # Errors
    /// When it has not.
    pub(crate) fn ended(&self) -> Result<&Path, String> {
        let name = self.name.as_deref().filter(|_| self.is_over && self.pending.is_empty());
        name.ok_or_else(|| "it ends in the midst of it".into())
    }

    fn command(&mut self, command: u16, body: &[u8]) -> Result<(), String> {
        if self.is_over {
            return Err("something comes after its end".into());
        }
        let attributes = attributes(body)?;
        let uuids = |wanted: u16| attributes.iter().filter(move |(number, _)| *number == wanted);
        let is = |(_, value): &(u16, &[u8]), mark: u128| **value == mark.to_be_bytes();
        let parent = self.parent.as_ref();
        let is_parent = |uuid: &(u16, &[u8])| parent.is_some_and(|(mark, _)| is(uuid, *mark));
        for (number, value) in &attributes {
            let is_target = *number == PATH_LINK && command == SYMLINK;
            if matches!(*number, PATH | PATH_TO | PATH_LINK | CLONE_PATH) && !is_target {
                refuse_outside(value)?;
            }
        }
        match (command, &self.name) {
            (SUBVOL | SNAPSHOT, Some(_)) => return Err("it is of more than one subvolume".into()),
            (SUBVOL | SNAPSHOT, None) => {
                let mut own = uuids(UUID);
                if !own.next().is_some_and(|uuid| is(uuid, self.mark)) || own.next().is_some() {
                    return Err("it is of another snapshot than was said".into());
                }
                let builds = command == SNAPSHOT;
                if builds != self.parent.is_some() || uuids(CLONE_UUID).any(|uuid| !is_parent(uuid)) {
                    return Err("it builds upon something else than was said".into());
                }
                let mut names = attributes.iter().filter(|(number, _)| *number == PATH);
                let name = names.next().map(|(_, value)| PathBuf::from(OsStr::from_bytes(value)));
                let is_plain = |name: &PathBuf| name.components().count() == 1 && names.next().is_none();
                self.name = Some(name.filter(is_plain).ok_or("its name is none")?);
            }
            (_, None) => return Err("it does not begin with a subvolume".into()),
            (CLONE, _) => {
                let mut uuids = uuids(CLONE_UUID);
                let (uuid, more) = (uuids.next(), uuids.next());
                let paths = attributes.iter().filter(|(number, _)| *number == CLONE_PATH);
                match (uuid, more) {
                    (Some(uuid), None) if is(uuid, self.mark) => {}
                    (Some(uuid), None) if is_parent(uuid) => {
                        let at = parent.map(|(_, at)| at.as_path()).unwrap_or(Path::new("/"));
                        paths.into_iter().try_for_each(|(_, path)| refuse_links(at, path))?;
                    }
                    _ => {
                        return Err("it takes content of a snapshot that is neither it nor its parent".into());
                    }
                }
            }
            (END, _) => self.is_over = true,
            (1..=LAST, _) => {}
            _ => return Err(format!("command {command} is not known")),
        }
        Ok(())
    }
}

fn attributes(mut body: &[u8]) -> Result<Vec<(u16, &[u8])>, String> {
    let mut found = Vec::new();
    while !body.is_empty() {
        let cut = || "an attribute that is not whole".to_owned();
        let (head, rest) = body.split_at_checked(4).ok_or_else(cut)?;
        let length = u16::from_le_bytes([head[2], head[3]]).into();
        let (value, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        found.push((u16::from_le_bytes([head[0], head[1]]), value));
        body = rest;
    }
    Ok(found)
}

/// A path must lead nowhere but into the subvolume; an empty one is the subvolume.
fn refuse_outside(path: &[u8]) -> Result<(), String> {
    let shown = Path::new(OsStr::from_bytes(path));
    match !path.contains(&0) && shown.components().all(|part| matches!(part, Component::Normal(_))) {
        true => Ok(()),
        false => Err(format!("it writes to `{}`", path.escape_ascii())),
    }
}

/// btrfs-receive(8) opens what is cloned from by its path, and would follow a link that the parent has.
fn refuse_links(parent: &Path, path: &[u8]) -> Result<(), String> {
    let mut at = parent.to_owned();
    for part in Path::new(OsStr::from_bytes(path)) {
        at.push(part);
        if at.symlink_metadata().is_ok_and(|meta| meta.is_symlink()) {
            return Err(format!("it takes content by way of the link `{}`", at.display()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: u128 = 7;
    const PARENT: u128 = 8;

    fn command(number: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let body: Vec<u8> = attributes
            .iter()
            .flat_map(|(number, value)| {
                let length = (value.len() as u16).to_le_bytes();
                [&number.to_le_bytes()[..], &length, value].concat()
            })
            .collect();
        [&(body.len() as u32).to_le_bytes()[..], &number.to_le_bytes(), &[0; 4], &body].concat()
    }

    fn begun(number: u16, name: &[u8]) -> Vec<u8> {
        let (own, parent) = (OWN.to_be_bytes(), PARENT.to_be_bytes());
        let mut attributes = vec![(PATH, name), (UUID, &own[..])];
        attributes.extend((number == SNAPSHOT).then_some((CLONE_UUID, &parent[..])));
        [&HEADER[..], &command(number, &attributes)].concat()
    }

    /// What is said of a stream that builds upon a parent and goes on so.
    fn said(parent: &Path, commands: &[Vec<u8>]) -> String {
        let mut guard = Guard::new(OWN, Some((PARENT, parent.to_owned())));
        let stream = [begun(SNAPSHOT, b"name"), commands.concat()].concat();
        guard
            .pass(&stream)
            .and_then(|_| guard.ended().map(|name| name.display().to_string()))
            .unwrap_or_else(|why| why)
    }

    #[test]
    fn a_stream_goes_by_as_it_is_however_it_is_cut() {
        let (own, write) = (OWN.to_be_bytes(), command(15, &[(PATH, b"a/b"), (19, b"content")]));
        let link = command(SYMLINK, &[(PATH, b"a/link"), (PATH_LINK, b"/../etc")]);
        let clone = command(CLONE, &[(PATH, b"a/c"), (CLONE_UUID, &own), (CLONE_PATH, b"a/b")]);
        let stream = [begun(SUBVOL, b"20261122T084011"), write, link, clone, command(END, &[])].concat();
        for size in [1, 3, 17, 40, stream.len()] {
            let mut guard = Guard::new(OWN, None);
            let mut gone = Vec::new();
            for piece in stream.chunks(size) {
                assert!(guard.ended().is_err());
                gone.extend(guard.pass(piece).unwrap());
            }
            assert_eq!(gone, stream);
            assert_eq!(guard.ended().unwrap(), Path::new("20261122T084011"));
        }
    }

    #[test]
    fn what_leads_outside_or_is_of_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        let (parent, other, end) = (PARENT.to_be_bytes(), 9u128.to_be_bytes(), command(END, &[]));
        let clone = |uuid: &[u8], path: &[u8]| {
            command(CLONE, &[(PATH, b"file"), (CLONE_UUID, uuid), (CLONE_PATH, path)])
        };
        let said = |commands: &[Vec<u8>]| said(dir.path(), commands);
        assert_eq!(said(&[clone(&parent, b"a/b"), end.clone()]), "name");
        for (command, why) in [
            (command(15, &[(PATH, b"/etc/passwd")]), "writes to `/etc/passwd`"),
            (command(9, &[(PATH, b"a"), (PATH_TO, b"../b")]), "writes to `../b`"),
            (command(10, &[(PATH, b"a"), (PATH_LINK, b"/b")]), "writes to `/b`"),
            (clone(&parent, b"../b"), "writes to `../b`"),
            (clone(&parent, b"link/shadow"), "by way of the link"),
            (clone(&other, b"a"), "neither it nor its parent"),
            (command(CLONE, &[(PATH, b"file")]), "neither it nor its parent"),
            (begun(SNAPSHOT, b"two")[HEADER.len()..].to_vec(), "more than one subvolume"),
            (command(25, &[]), "command 25"),
            ([128; 10].to_vec(), "a command of"),
        ] {
            let said = said(&[command, end.clone()]);
            assert!(said.contains(why), "{why}: {said}");
        }
        assert!(said(&[end.clone(), end.clone()]).contains("after its end"));
        assert!(said(&[]).contains("in the midst"));
        let first = |stream: &[u8], parent: Option<u128>| {
            Guard::new(OWN, parent.map(|mark| (mark, PathBuf::new()))).pass(stream).unwrap_err()
        };
        assert!(first(&begun(SUBVOL, b"a/b"), None).contains("its name"));
        assert!(first(&begun(SUBVOL, b".."), None).contains("writes to"));
        assert!(first(&begun(SUBVOL, b"a"), Some(PARENT)).contains("builds upon"));
        assert!(first(&begun(SNAPSHOT, b"a"), None).contains("builds upon"));
        assert!(first(&begun(SNAPSHOT, b"a"), Some(9)).contains("builds upon"));
        let another = [&HEADER[..], &command(SUBVOL, &[(PATH, b"a"), (UUID, &other)])].concat();
        assert!(first(&another, None).contains("another snapshot"));
        assert!(first(b"btrfs-stream\0\x02\0\0\0", None).contains("version 1"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(pieces: Vec<Vec<u8>>, after: Vec<u8>) {
            for begin in [Vec::new(), begun(SUBVOL, b"a")] {
                let mut guard = Guard::new(OWN, None);
                let all = std::iter::once(&begin).chain(&pieces).chain([&after]);
                let _ = all.into_iter().try_for_each(|piece| guard.pass(piece).map(drop));
                prop_assert!(guard.ended().is_err());
            }
        }
    }
}
