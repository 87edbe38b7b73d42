//! Paths, lexically: absolute, without `..`, mapped by whole components, held below roots.
//!
//! Links are not seen here: the agent opens what comes out with links refused.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Longest path that Linux takes.
pub(crate) const MAX_PATH_BYTES: usize = 4095;

/// Places that name other things than files, whatever the roots say: descriptors, processes, kernel controls.
const NEVER: [&str; 5] = ["/proc", "/sys", "/dev/fd", "/dev/fdset", "/dev/mem"];

/// Why a text is no path that we use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum PathProblem {
    #[error("expected an absolute path")]
    Relative,
    #[error("a path with '..' is not followed")]
    Parent,
    #[error("a path is at most 4095 bytes")]
    Long,
    #[error("a path has no control characters")]
    Control,
    #[error("this names no file of a VM")]
    Special,
}

/// An absolute path in its shortest form: no `..`, no `.`, no doubled or trailing slash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct CleanPath(String);

impl CleanPath {
    pub(crate) fn parse(text: &str) -> Result<Self, PathProblem> {
        if text.len() > MAX_PATH_BYTES {
            return Err(PathProblem::Long);
        }
        if text.chars().any(char::is_control) {
            return Err(PathProblem::Control);
        }
        let Some(rest) = text.strip_prefix('/') else {
            return Err(PathProblem::Relative);
        };
        let mut clean = String::new();
        for part in rest.split('/') {
            match part {
                "" | "." => {}
                ".." => return Err(PathProblem::Parent),
                part => {
                    clean.push('/');
                    clean.push_str(part);
                }
            }
        }
        if clean.is_empty() {
            clean.push('/');
        }
        let path = Self(clean);
        let special = NEVER.iter().any(|place| path.below(place).is_some());
        if special { Err(PathProblem::Special) } else { Ok(path) }
    }

    /// `text`, or `text` below `base` when it is relative.
    pub(crate) fn parse_from(base: Option<&str>, text: &str) -> Result<Self, PathProblem> {
        match base {
            Some(base) if !text.starts_with('/') && !text.is_empty() => {
                let mut joined = base.to_string();
                joined.push('/');
                joined.push_str(text);
                Self::parse(&joined)
            }
            _ => Self::parse(text),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component; empty for `/`.
    pub(crate) fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// What follows `root` by whole components: empty or with a leading slash. `None` when this is not below `root`.
    fn below(&self, root: &str) -> Option<&str> {
        if root == "/" {
            return Some(if self.0 == "/" { "" } else { &self.0 });
        }
        self.0.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    pub(crate) fn is_below(&self, roots: &[Self]) -> bool {
        roots.iter().any(|root| self.below(&root.0).is_some())
    }
}

/// A source's path to ours, longest prefix first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Mappings(Vec<(CleanPath, CleanPath)>);

impl Mappings {
    pub(crate) fn new(mut pairs: Vec<(CleanPath, CleanPath)>) -> Self {
        pairs.sort_by_key(|(from, _)| core::cmp::Reverse(from.0.len()));
        Self(pairs)
    }

    /// Where the source's `path` is here, if a mapping says so. The target may come out too long, which is an error.
    pub(crate) fn apply(&self, path: &CleanPath) -> Option<Result<CleanPath, PathProblem>> {
        let (to, rest) =
            self.0.iter().find_map(|(from, to)| path.below(&from.0).map(|rest| (to, rest)))?;
        let mut ours = to.0.clone();
        ours.push_str(rest);
        Some(CleanPath::parse(&ours))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(text: &str) -> CleanPath {
        CleanPath::parse(text).unwrap()
    }

    #[test]
    fn shortest_form() {
        for (text, form) in
            [("/", "/"), ("//a/./b//", "/a/b"), ("/a/..b", "/a/..b"), ("/dev/fdx", "/dev/fdx")]
        {
            assert_eq!(clean(text).as_str(), form);
        }
    }

    #[test]
    fn refuses_by_reason() {
        for (text, problem) in [
            ("", PathProblem::Relative),
            ("a", PathProblem::Relative),
            ("/a/../b", PathProblem::Parent),
            ("/a\nb", PathProblem::Control),
            ("/proc/self/mem", PathProblem::Special),
            ("//dev/./fdset/3", PathProblem::Special),
        ] {
            assert_eq!(CleanPath::parse(text), Err(problem), "{text:?}");
        }
        assert_eq!(CleanPath::parse(&"/a".repeat(3000)), Err(PathProblem::Long));
    }

    #[test]
    fn roots_hold_by_components() {
        let roots = [clean("/data"), clean("/srv/vm")];
        assert!(clean("/data/x").is_below(&roots) && clean("/srv/vm").is_below(&roots));
        assert!(!clean("/database").is_below(&roots) && !clean("/srv/v").is_below(&roots));
        assert!(clean("/etc/x").is_below(&[clean("/")]));
    }

    #[test]
    fn longest_mapping_wins() {
        let pairs =
            [("/srv", "/a"), ("/srv/vm/disks", "/data/disks"), ("/srv/vm", "/b"), ("/x", "/")];
        let map = Mappings::new(pairs.iter().map(|(from, to)| (clean(from), clean(to))).collect());
        for (path, ours) in [
            ("/srv/vm/disks/a.raw", Some("/data/disks/a.raw")),
            ("/srv/vm/disksize", Some("/b/disksize")),
            ("/srv", Some("/a")),
            ("/x/y", Some("/y")),
            ("/srvx", None),
        ] {
            let got = map.apply(&clean(path)).map(Result::unwrap);
            assert_eq!(got.as_ref().map(CleanPath::as_str), ours, "{path}");
        }
    }

    #[test]
    fn relative_paths_join_the_working_directory() {
        assert_eq!(
            CleanPath::parse_from(Some("/home/u"), "d.raw").unwrap().as_str(),
            "/home/u/d.raw"
        );
        assert!(CleanPath::parse_from(Some("/home/u"), "../d").is_err());
        assert!(CleanPath::parse_from(None, "d").is_err());
        assert!(CleanPath::parse_from(Some("/home"), "").is_err());
    }
}
