//! Bytes between hosts: wire protocol, transports, file trees, delta.
