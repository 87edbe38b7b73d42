//! What /proc says of a process, and what its log file ends with.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sterna_model::Uuid;

use super::Process;

/// Bytes in an argument vector, at most. The kernel's own limit is a quarter of the stack, 2 MiB.
const MAX_ARGV_BYTES: u64 = 8 << 20;

/// Bytes of an environment that are looked at.
const MAX_ENVIRONMENT_BYTES: u64 = 1 << 20;

/// Clock ticks per second in what /proc tells users; the same on every Linux but Alpha's.
const TICKS_PER_SECOND: u32 = 100;

/// What /proc/PID/stat says that we want to know.
pub(super) struct Life {
    pub(super) start_time: u64,
    /// That only its entry is left (a zombie).
    pub(super) ended: bool,
}

pub(super) fn life_of(pid: i32) -> io::Result<Option<Life>> {
    let Some(fields) = stat_of(pid)? else { return Ok(None) };
    let ended = matches!(fields.get(0).as_deref(), Some("Z" | "X" | "x"));
    let start_time = fields.number(19)?;
    Ok(Some(Life { start_time, ended }))
}

/// The id of the host's boot, by which the kernel tells one from all others.
///
/// # Errors
/// When /proc cannot be read, or says something else.
pub fn boot_id() -> io::Result<Uuid> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id = text.trim().parse();
    id.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The number under which a process holds the socket with this inode.
///
/// # Errors
/// When we may not look, or the process is gone.
pub(super) fn socket_of(pid: i32, inode: u64) -> io::Result<Option<i32>> {
    let wanted = format!("socket:[{inode}]");
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        // One that was closed since is not the one.
        if std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()) {
            return Ok(entry.file_name().to_str().and_then(|number| number.parse().ok()));
        }
    }
    Ok(None)
}

/// How many processes the kernel has killed for want of memory, of the host or of a control group, since the host's boot;
/// `None` where it does not tell.
pub(super) fn memory_kills() -> Option<u64> {
    kills_in(&std::fs::read_to_string("/proc/vmstat").ok()?)
}

fn kills_in(vmstat: &str) -> Option<u64> {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// When the process started, in clock ticks since the host's boot; `None` when there is no such process.
///
/// # Errors
/// When /proc cannot be read.
pub fn start_time_of(pid: i32) -> io::Result<Option<u64>> {
    Ok(life_of(pid)?.map(|life| life.start_time))
}

/// How long the process has had the processors, user and system time of all its threads, in steps of 10 ms; `None` when
/// there is no such process.
///
/// # Errors
/// When /proc cannot be read.
pub fn cpu_time_of(pid: i32) -> io::Result<Option<Duration>> {
    let Some(fields) = stat_of(pid)? else { return Ok(None) };
    let ticks = fields.number(11)?.saturating_add(fields.number(12)?);
    let millis = ticks.saturating_mul(u64::from(1000 / TICKS_PER_SECOND));
    Ok(Some(Duration::from_millis(millis)))
}

/// The process's argument vector, program name first; empty for a zombie.
///
/// # Errors
/// When there is no such process, it cannot be read, or is longer than 8 MiB.
pub fn argv_of(pid: i32) -> io::Result<Vec<OsString>> {
    let mut bytes = Vec::new();
    let file = File::open(format!("/proc/{pid}/cmdline"))?;
    file.take(MAX_ARGV_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_ARGV_BYTES {
        let text = format!("expected at most {MAX_ARGV_BYTES} bytes of arguments, found more");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    if bytes.last() == Some(&0) {
        bytes.pop();
    } else if bytes.is_empty() {
        return Ok(Vec::new());
    }
    Ok(bytes.split(|byte| *byte == 0).map(|arg| OsString::from_vec(arg.to_vec())).collect())
}

/// Processes whose environment had this variable with this value when their program began. Those that are not ours to look
/// at are passed over.
///
/// # Errors
/// When the kernel's list of processes cannot be read.
pub fn find_marked(name: &str, value: &str) -> io::Result<Vec<Process>> {
    let mark = format!("{name}={value}");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let number = entry?.file_name();
        let Some(pid) = number.to_str().and_then(|number| number.parse::<i32>().ok()) else {
            continue;
        };
        let mut environment = Vec::new();
        let read = File::open(format!("/proc/{pid}/environ"))
            .and_then(|file| file.take(MAX_ENVIRONMENT_BYTES).read_to_end(&mut environment));
        let is_marked = environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes());
        if read.is_ok() && is_marked {
            found.extend(Process::attach(pid).ok().flatten());
        }
    }
    Ok(found)
}

/// The file that the process executes. Ends with ` (deleted)` where it was replaced since, by an upgrade for instance.
///
/// # Errors
/// When there is no such process, or we may not look.
pub fn exe_of(pid: i32) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe"))
}

/// The end of a log file, at most `max_bytes`, from the start of a line, with control characters blanked: fit for an error
/// message. Empty where there is no file.
#[must_use]
pub fn tail_of(path: &Path, max_bytes: u32) -> String {
    let read = || -> io::Result<(Vec<u8>, bool)> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(u64::from(max_bytes));
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(u64::from(max_bytes)).read_to_end(&mut bytes)?;
        Ok((bytes, start > 0))
    };
    let Ok((bytes, cut)) = read() else { return String::new() };
    let text = String::from_utf8_lossy(&bytes);
    let whole = match text.split_once('\n') {
        Some((_, rest)) if cut && !rest.is_empty() => rest,
        _ => &text,
    };
    let plain = |char: char| if char.is_control() && char != '\n' { ' ' } else { char };
    whole.trim_end().chars().map(plain).collect()
}

/// The fields of /proc/PID/stat after the program's name, from the state (field 3) on.
struct Stat(String);

impl Stat {
    fn get(&self, index: usize) -> Option<String> {
        self.0.split_ascii_whitespace().nth(index).map(str::to_owned)
    }

    fn number(&self, index: usize) -> io::Result<u64> {
        let found = self.get(index).and_then(|field| field.parse().ok());
        found.ok_or_else(|| {
            let text = format!("expected a number in field {} of a stat file", index + 3);
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }
}

fn stat_of(pid: i32) -> io::Result<Option<Stat>> {
    let text = match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // ESRCH: it went while the file was read.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // The name is in parentheses and may hold anything, parentheses too.
    Ok(text.rsplit_once(')').map(|(_, fields)| Stat(fields.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_ourselves() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(start_time_of(pid).unwrap().is_some_and(|ticks| ticks > 0));
        assert!(cpu_time_of(pid).unwrap().is_some());
        assert_eq!(argv_of(pid).unwrap(), std::env::args_os().collect::<Vec<_>>());
        assert_eq!(exe_of(pid).unwrap(), std::env::current_exe().unwrap());
        assert_eq!(start_time_of(i32::MAX).unwrap(), None);
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        assert_ne!(boot_id().unwrap(), Uuid([0; 16]));
    }

    #[test]
    fn kills_for_want_of_memory_are_counted() {
        assert_eq!(kills_in("nr_free_pages 5\noom_kill 3\noom_kill_x 4\n"), Some(3));
        assert_eq!(kills_in("nr_free_pages 5\noom_killed 3\n"), None);
        assert!(memory_kills().is_some());
    }

    #[test]
    fn a_tail_starts_with_a_line_and_is_plain() {
        let path = std::env::temp_dir().join(format!("sterna-tail-{}", std::process::id()));
        std::fs::write(&path, "first line\nsecond\x1b[31m\tline\nthird\n").unwrap();
        assert_eq!(tail_of(&path, 1000), "first line\nsecond [31m line\nthird");
        assert_eq!(tail_of(&path, 12), "third");
        assert_eq!(tail_of(&path, 3), "rd");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(tail_of(&path, 12), "");
    }
}
