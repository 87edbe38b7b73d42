//! Sterna beside stock QEMU over a shaped link.

fn main() {}
