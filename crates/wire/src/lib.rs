//! Frames, hello and messages between two agents.
