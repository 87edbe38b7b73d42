//! The real program against a fake agent: what it prints where, and its exit codes.

#[cfg(test)]
mod drain;
#[cfg(test)]
mod fake_agent;
#[cfg(test)]
mod interrupts;
#[cfg(test)]
mod moves;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod words;
