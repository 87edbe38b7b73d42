//! What the format promises, held against honest peers, hostile ones and the bytes of earlier builds.

mod frames;
mod golden;
mod hello;
mod hostile;
mod keep;
mod messages;
mod post_copy;
mod samples;
