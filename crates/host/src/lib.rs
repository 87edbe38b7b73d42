//! The hands: QMP, guest memory, processes, TLS, sockets.

pub mod clock;
pub mod dirs;
pub mod durable;
pub mod image;
pub mod memory;
pub mod paths;
pub mod pki;
pub mod process;
pub mod qmp;
pub mod same_file;
pub mod socket;
pub mod tls;
pub mod usage;
pub mod userfault;
