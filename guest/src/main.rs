//! Test guest: loads whose every page can be checked.

fn main() {}
