//! The hands: QMP, guest memory, processes, TLS, sockets.
