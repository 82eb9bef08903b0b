//! Containers as their engines know them: bare process trees and runc; their freezer and network.
//!
//! One file per engine. [`Engine`] is what an engine must be able to do; [`SourceContainer`] and
//! [`DestinationContainer`] are the two ends of a container on the move.

mod arrival;
pub mod bare;
pub mod container;
pub mod cure;
pub mod error;
pub mod freezer;
mod guardian;
pub mod hold;
pub mod live;
pub mod network;
mod obstacles;
pub mod process;
pub mod registry;
pub mod remains;
pub mod runc;
mod sys;
pub mod throttle;
mod tool;

pub use container::{
    DestinationContainer, Engine, Facts, Given, Note, OpenRequest, RestoreRequest, Shipment, SourceContainer,
    Tree,
};
pub use error::EngineError;
pub use registry::{ContainerName, all, by_kind, resolve};
