//! Which engines there are, and which of them means what the user wrote.

use crate::bare::Bare;
use crate::container::Engine;
use crate::docker::Docker;
use crate::error::EngineError;
use crate::podman::Podman;
use crate::runtime::Runtime;
use std::fmt;

/// A container with its engine: `runc:web`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerName {
    /// The engine's kind.
    pub engine: &'static str,
    /// The name there.
    pub name: String,
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.engine, self.name)
    }
}

/// Every engine of this build.
pub fn all() -> Vec<Box<dyn Engine>> {
    vec![
        Box::new(Runtime::runc()),
        Box::new(Runtime::crun()),
        Box::new(Podman::default()),
        Box::new(Docker::default()),
        Box::new(Bare),
    ]
}

/// The engine of that kind.
pub fn by_kind(kind: &str) -> Option<Box<dyn Engine>> {
    all().into_iter().find(|engine| engine.kind() == kind)
}

/// Finds the engine of `engine:name`, or the one engine that knows a bare name.
///
/// # Errors
/// [`EngineError::NotFound`] when no engine knows it, [`EngineError::Ambiguous`] when several do.
pub fn resolve(
    text: &str,
    engines: Vec<Box<dyn Engine>>,
) -> Result<(Box<dyn Engine>, ContainerName), EngineError> {
    if let Some((kind, name)) = text.split_once(':') {
        let engine = engines.into_iter().find(|engine| engine.kind() == kind);
        let engine = engine.ok_or_else(|| EngineError::NotFound(text.to_owned()))?;
        let name = ContainerName { engine: engine.kind(), name: name.to_owned() };
        return Ok((engine, name));
    }
    let mut knowing: Vec<_> = engines.into_iter().filter(|engine| engine.knows(text)).collect();
    if knowing.len() > 1 {
        let candidates = knowing.iter().map(|engine| format!("`{}:{text}`", engine.kind())).collect();
        return Err(EngineError::Ambiguous { name: text.to_owned(), candidates });
    }
    let engine = knowing.pop().ok_or_else(|| EngineError::NotFound(text.to_owned()))?;
    let name = ContainerName { engine: engine.kind(), name: text.to_owned() };
    Ok((engine, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{DestinationContainer, Note, OpenRequest, Shipment, SourceContainer};
    use godwit_transfer::message::Refusal;

    struct Knows(&'static str, &'static str);

    impl Engine for Knows {
        fn kind(&self) -> &'static str {
            self.0
        }
        fn usable(&self) -> Result<String, EngineError> {
            Ok("1".into())
        }
        fn knows(&self, name: &str) -> bool {
            name == self.1
        }
        fn open(&self, name: &str, _: &OpenRequest) -> Result<Box<dyn SourceContainer>, EngineError> {
            Err(EngineError::NotFound(name.into()))
        }
        fn examine(&self, _: &Shipment) -> Vec<Refusal> {
            vec![]
        }
        fn prepare(
            &self,
            shipment: &Shipment,
            _: &mut Note<'_>,
        ) -> Result<Box<dyn DestinationContainer>, EngineError> {
            Err(EngineError::NotFound(shipment.name.clone()))
        }
        fn reopen_source(&self, _: &str) -> Result<Box<dyn SourceContainer>, EngineError> {
            Err(EngineError::NotFound(self.1.into()))
        }
        fn reopen_destination(&self, _: &str) -> Result<Box<dyn DestinationContainer>, EngineError> {
            Err(EngineError::NotFound(self.1.into()))
        }
    }

    fn engines(one: &'static str, two: &'static str) -> Vec<Box<dyn Engine>> {
        vec![Box::new(Knows("runc", one)), Box::new(Knows("pid", two))]
    }

    #[test]
    fn a_name_must_mean_one_container() {
        let found = |text, one, two| resolve(text, engines(one, two)).map(|(_, name)| name.to_string());
        assert_eq!(found("web", "web", "x").unwrap(), "runc:web");
        assert_eq!(found("pid:77", "web", "x").unwrap(), "pid:77");
        let error = found("42", "42", "42").unwrap_err();
        assert_eq!(error.to_string(), "`42` is ambiguous: `runc:42`, `pid:42`");
        assert!(matches!(found("nobody", "web", "x"), Err(EngineError::NotFound(_))));
        assert!(matches!(found("lxc:web", "web", "x"), Err(EngineError::NotFound(_))));
    }
}
