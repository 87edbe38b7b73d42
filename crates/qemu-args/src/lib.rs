//! QEMU argument vectors: description, allow-list, rebuilding at a destination.
