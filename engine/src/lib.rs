//! Containers as their engines know them: bare process trees, runc, crun, podman and docker; their freezer and network.
//!
//! One file per engine. [`Engine`] is what an engine must be able to do; [`SourceContainer`] and
//! [`DestinationContainer`] are the two ends of a container on the move.

mod arrival;
pub mod bare;
pub mod container;
pub mod cure;
pub mod docker;
pub mod error;
pub mod freezer;
mod guardian;
mod health;
pub mod hold;
pub mod image_id;
pub mod live;
pub mod network;
mod obstacles;
pub mod podman;
pub mod process;
mod published;
pub mod registry;
pub mod remains;
mod restart;
pub mod runtime;
pub mod stand_in;
pub mod standstill;
mod start;
mod sys;
pub mod throttle;
mod tool;
mod volumes;

pub use container::{
    DestinationContainer, Engine, Facts, Given, Note, OpenRequest, RestoreRequest, Shipment, SourceContainer,
    Tree,
};
pub use error::EngineError;
pub use image_id::{IMAGE_NOTE, engine_image_id, is_image_id};
pub use registry::{ContainerName, all, by_kind, resolve};
pub use tool::own_program;
