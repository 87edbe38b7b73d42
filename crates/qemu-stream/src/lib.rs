//! QEMU's migration stream, read and written.
