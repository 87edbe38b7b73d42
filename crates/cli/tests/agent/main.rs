//! The real agent under a service manager that is none: what it tells, what its log looks like, and its unit file.

#[cfg(test)]
mod unit;
#[cfg(test)]
mod watched;
