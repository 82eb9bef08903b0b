//! What podman makes for a container before its memory comes: the container as podman knows it, with its volumes, its root file system, its
//! pod, and what podman would make when it starts it.

use super::{PodmanArrival, bind, containers, leading_job};
use crate::container::Note;
use crate::error::EngineError;
use crate::hold::install_hook;
use crate::podman::pod::Pod;
use crate::podman::pod_here::PodHere;
use crate::podman::{KIND, QUESTION, sharing, start};
use crate::runtime::{config, write_private};
use crate::tool;
use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// How podman says that a checkpoint holds no images: it has made the container by then.
const NO_IMAGES: &str = "a complete checkpoint for this container cannot be found";

impl PodmanArrival {
    /// The container as podman knows it, with its volumes and its root file system: all that can exist before its memory.
    pub(super) fn make(&mut self, note: &mut Note<'_>) -> Result<(), EngineError> {
        for volume in &self.recipe.volumes {
            if self.podman.volume(&volume.name)?.is_none() {
                self.made_volumes.push(volume.name.clone());
            }
        }
        self.note(note, None)?;
        self.begun_to_make = true;
        for volume in self.recipe.volumes.iter().filter(|volume| self.made_volumes.contains(&volume.name)) {
            if volume.anonymous {
                // podman makes it with the container, and removes it with it
                continue;
            }
            let mut args = vec!["volume".to_owned(), "create".into(), format!("--driver={}", volume.driver)];
            args.extend(volume.labels.iter().map(|(key, value)| format!("--label={key}={value}")));
            args.extend(volume.options.iter().map(|(key, value)| format!("--opt={key}={value}")));
            args.push(volume.name.clone());
            tool::run(&self.podman.program, &args, QUESTION)?;
        }
        let of_pod = self.recipe.led_pod().and_then(Pod::image);
        for (image, name) in [self.recipe.record.image()].into_iter().chain(of_pod) {
            if self.podman.run(&["image", "exists", name]).is_err() {
                // podman would look for it in a registry
                self.podman.run(&["tag", image, name])?;
            }
        }
        self.containers = containers(&self.podman)?;
        self.conmon = start::watcher(&self.podman.program)?;
        if let Some(pod) = &self.recipe.pod {
            let pod_here = match self.recipe.led_pod() {
                Some(pod) => PodHere::make(&self.podman, pod, &self.shipment.job)?,
                None => PodHere::find(&self.podman, pod, leading_job(&self.shipment))?.ok_or_else(|| {
                    EngineError::NotHeld(format!("the pod `{}` was not made for it", pod.name))
                })?,
            };
            self.be_in(pod_here);
        }
        self.find_owner()?;
        self.make_container()?;
        sharing::note_made(&self.shipment.job, &self.recipe.id)?;
        let merged = self.podman.run(&["mount", &self.recipe.id])?;
        self.merged = Some(merged.trim().into());
        self.make_keepings()?;
        install_hook(&self.shipment.job).map(drop)
    }

    /// The container whose namespaces it shares is that which the migration has made that it follows, and nobody else's.
    fn find_owner(&self) -> Result<(), EngineError> {
        match &self.recipe.owner {
            Some(owner) if !sharing::has_made(leading_job(&self.shipment), owner) => {
                Err(EngineError::NotHeld(format!("the container `{owner}` was not made for it")))
            }
            _ => Ok(()),
        }
    }

    /// It is in a pod of another id than at the source, and its cgroup is in that of the pod.
    pub(super) fn be_in(&mut self, pod_here: PodHere) {
        if let Some(pod) = &self.recipe.pod {
            config::rename_cgroup(&mut self.recipe.config, &pod.id, &pod_here.id);
        }
        self.pod = Some(pod_here);
    }

    /// Has podman read a checkpoint that holds no images: it makes the container, and gives up then.
    fn make_container(&self) -> Result<(), EngineError> {
        let dir = self.shipment.job.join("record");
        std::fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&dir)
            .map_err(EngineError::io("make", &dir))?;
        let volumes = self.recipe.volumes.iter();
        let anonymous: Vec<&str> =
            volumes.filter(|volume| volume.anonymous).map(|volume| volume.name.as_str()).collect();
        let files = self.recipe.record.files(&anonymous)?;
        for (name, bytes) in &files {
            write_private(&dir.join(name), bytes)?;
        }
        let archive = self.shipment.job.join("record.tar");
        write_private(&archive, b"")?;
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let mut tar = words(&["--create", "--file"]);
        tar.extend([archive.clone().into(), "--directory".into(), dir.clone().into()]);
        tar.extend(files.iter().map(|(name, _)| (*name).into()));
        tool::run(Path::new("tar"), &tar, QUESTION)?;
        let mut args = words(&["--runtime", self.recipe.flavor.kind(), "container", "restore"]);
        args.extend(self.pod.iter().map(|pod| OsString::from(format!("--pod={}", pod.id))));
        args.extend(words(&["--ignore-volumes", "--ignore-rootfs", "--import"]));
        args.push(archive.into());
        let made = tool::run(&self.podman.program, &args, QUESTION);
        // it has the container's environment in it
        let _ = std::fs::remove_dir_all(&dir);
        let _ = std::fs::remove_file(self.shipment.job.join("record.tar"));
        match made {
            Ok(_) => Err(EngineError::Unreadable {
                path: Path::new(KIND).join("container restore"),
                reason: "it has restored a container out of nothing".into(),
            }),
            Err(EngineError::Tool { what, .. }) if what.contains(NO_IMAGES) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What podman would make when it starts the container, and uses when it is there.
    fn make_keepings(&self) -> Result<(), EngineError> {
        if let Some(log) = self.log() {
            write_private(&log, b"")?;
        }
        let Some((_, size)) = self.recipe.record.shm() else { return Ok(()) };
        let dir = self.shm();
        if self.recipe.shares_shm() {
            let leader = self.recipe.pod.as_ref().and_then(Pod::leader).unwrap_or_default();
            return bind(&self.directory_of(leader).join("shm"), &dir);
        }
        let options = format!("mode=1777,size={size},nosuid,nodev,noexec");
        std::fs::create_dir_all(&dir).map_err(EngineError::io("make", &dir))?;
        let words = ["-t", "tmpfs", "-o", &options, "shm"].map(OsString::from);
        let args: Vec<OsString> = words.into_iter().chain([dir.clone().into()]).collect();
        tool::run(Path::new("mount"), &args, QUESTION)?;
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o1777))
            .map_err(EngineError::io("set the mode of", dir))
    }
}
