//! The arguments of `godwit hook`.

use clap::{Subcommand, ValueEnum};
use godwit_hooks::oci::Stage;
use std::path::PathBuf;

/// `godwit hook`: containers that are meant to be moved are registered when they are made.
#[derive(Debug, Subcommand)]
pub enum HookCommand {
    /// Have podman register every container with the annotation `godwit.migratable=true`
    Install {
        /// Where it looks for hooks (oci-hooks(5)); another directory must be in `hooks_dir` of containers.conf
        #[arg(long, default_value = "/usr/share/containers/oci/hooks.d", value_name = "DIR")]
        dir: PathBuf,
    },
    /// Undo `install`; containers that were made meanwhile keep their hooks
    Uninstall {
        /// Where it was installed
        #[arg(long, default_value = "/usr/share/containers/oci/hooks.d", value_name = "DIR")]
        dir: PathBuf,
    },
    /// Show the registered containers, and what speaks against moving them
    List,
    /// Edit a bundle's config.json for runc or crun: register it when it is run, and give it no terminal
    Prepare {
        /// The directory with config.json; the first one is kept as config.json.before-godwit
        bundle: PathBuf,
        /// Use this network namespace, which you make before it is run
        #[arg(long, value_name = "PATH")]
        netns: Option<PathBuf>,
    },
    /// Do what is to be done at a stage (called by a runtime, with the container's state on standard input)
    #[command(hide = true)]
    Run {
        /// Which
        stage: StageArg,
    },
}

/// When a runtime calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "camelCase")]
pub enum StageArg {
    /// Before its program runs
    CreateRuntime,
    /// After it was deleted
    Poststop,
}

impl From<StageArg> for Stage {
    fn from(arg: StageArg) -> Self {
        match arg {
            StageArg::CreateRuntime => Stage::CreateRuntime,
            StageArg::Poststop => Stage::Poststop,
        }
    }
}
