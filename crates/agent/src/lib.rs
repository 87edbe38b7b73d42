//! The daemon: drive loop, VM registry, job journal, control API.
