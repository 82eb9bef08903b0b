//! All that is spoken with CRIU: RPC, images, statistics, log explainer.
