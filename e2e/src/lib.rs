//! End-to-end tests on real QEMU, in two network namespaces.
