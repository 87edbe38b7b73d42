//! The agent: one per host. It owns the VMs that run here, the jobs that move them, and the sockets that both are asked
//! for over.
