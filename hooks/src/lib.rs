//! Calls whoever wants to hear of a migration: programs of the host, and the application itself.
//!
//! Who is called at which moment is in [`godwit_migration::hooks`]; docs/hooks.md tells it to users.

pub mod application;
pub mod calls;
pub mod http;
pub mod oci;
pub mod pause;
pub mod program;
pub mod reports;
pub mod token;

pub use application::Application;
pub use calls::{About, CallError, Calls, FirstProcess, Occasion};
pub use pause::Pause;
