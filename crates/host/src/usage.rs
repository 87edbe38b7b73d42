//! What the agent itself takes, anonymous memory and processor time, and how much of the machine is left.
//!
//! The resident set says nothing here, since guest RAM in files is read and written by the agent and never its own;
//! neither does its high-water mark (`VmHWM`), which counts files and cannot be set back for one job. So anonymous memory
//! is read and the peak kept here.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sterna_model::ByteCount;

/// How often a job should call [`AnonPeak::sample`]. A peak that comes and goes between two samples is not seen.
pub const SAMPLE_EVERY: Duration = Duration::from_millis(50);

/// This process's anonymous memory, now.
///
/// # Errors
/// When /proc/self/status cannot be read or does not have it.
pub fn anonymous_memory() -> io::Result<ByteCount> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    anonymous_in(&status).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "expected RssAnon in /proc/self/status, found none",
        )
    })
}

fn anonymous_in(status: &str) -> Option<ByteCount> {
    let value = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024).map(ByteCount)
}

/// The most anonymous memory that was seen. One sample costs some tens of microseconds; anyone may take it.
#[derive(Debug, Default)]
pub struct AnonPeak {
    bytes: AtomicU64,
}

impl AnonPeak {
    /// Looks, and keeps the larger. A look that fails changes nothing.
    pub fn sample(&self) {
        if let Ok(now) = anonymous_memory() {
            self.bytes.fetch_max(now.0, Ordering::Relaxed);
        }
    }

    /// The largest of all samples; what was between them is not in it.
    #[must_use]
    pub fn peak(&self) -> ByteCount {
        ByteCount(self.bytes.load(Ordering::Relaxed))
    }
}

/// How idle the machine's processors were since the last look.
#[derive(Debug, Default)]
pub struct IdleShare {
    /// Idle and all ticks since boot, at the last look.
    seen: Option<(u64, u64)>,
}

impl IdleShare {
    /// The share of all processors' time since the last look that was idle, 0 to 1; none at the first look, when too little
    /// time has passed, or where the system does not tell. Time that this machine's own host took counts as busy.
    pub fn look(&mut self) -> Option<f64> {
        let now = idle_and_all(&std::fs::read_to_string("/proc/stat").ok()?)?;
        let before = self.seen.replace(now)?;
        let idle = u32::try_from(now.0.checked_sub(before.0)?).ok()?;
        let all = u32::try_from(now.1.checked_sub(before.1)?).ok()?;
        (all > 0).then(|| f64::from(idle) / f64::from(all))
    }
}

/// The first line counts user, nice, system, idle, iowait, irq, softirq and steal; what follows is in user already.
fn idle_and_all(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> =
        line.split_whitespace().take(8).map_while(|tick| tick.parse().ok()).collect();
    let [_, _, _, idle, waiting, ..] = ticks[..] else { return None };
    Some((
        idle.checked_add(waiting)?,
        ticks.iter().try_fold(0_u64, |sum, of| sum.checked_add(*of))?,
    ))
}

/// The processor time that a process has had, user and system, in steps of 10 ms.
///
/// # Errors
/// When there is no such process, or /proc cannot be read.
pub fn cpu_time(pid: i32) -> io::Result<Duration> {
    crate::process::cpu_time_of(pid)?.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("there is no process {pid}"))
    })
}

/// How long a thread has run on a processor, and how long it was ready to and waited for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduled {
    /// On a processor.
    pub ran: Duration,
    /// In the queue for one.
    pub waited: Duration,
}

/// What a thread of a process has had of the processors since it began.
///
/// # Errors
/// When there is no such thread, or the kernel keeps no such account.
pub fn scheduled(pid: i32, thread: i64) -> io::Result<Scheduled> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat"))?;
    scheduled_in(&text).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("expected two times, found {text:?}"))
    })
}

/// Nanoseconds of both, then how often it ran.
fn scheduled_in(text: &str) -> Option<Scheduled> {
    let mut times = text.split_whitespace().map(|time| time.parse().ok().map(Duration::from_nanos));
    let (ran, waited) = (times.next()??, times.next()??);
    Some(Scheduled { ran, waited })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_stays_when_memory_is_given_back() {
        let peak = AnonPeak::default();
        peak.sample();
        let before = peak.peak();
        assert!(before.0 > 0);
        let held = vec![1_u8; 64 << 20];
        peak.sample();
        assert!(peak.peak().0 >= (64 << 20), "{} after {before}", peak.peak());
        let high = peak.peak();
        drop(std::hint::black_box(held));
        peak.sample();
        assert!(peak.peak() >= high);
    }

    #[test]
    fn work_takes_time() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let before = cpu_time(pid).unwrap();
        let begun = std::time::Instant::now();
        let mut number = 1_u64;
        while cpu_time(pid).unwrap() < before + Duration::from_millis(30) {
            for _ in 0..100_000 {
                number = std::hint::black_box(number.wrapping_mul(3));
            }
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
        assert!(cpu_time(i32::MAX).is_err());
    }

    #[test]
    fn a_thread_that_works_has_run() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let before = scheduled(pid, pid.into()).unwrap_or_default();
        // The main thread of a test program waits for the others; what it had does not become less.
        assert!(scheduled(pid, pid.into()).unwrap_or_default().ran >= before.ran);
        let (ran, waited) = (Duration::from_nanos(1500), Duration::from_nanos(7));
        assert_eq!(scheduled_in("1500 7 3\n"), Some(Scheduled { ran, waited }));
        for wrong in ["", "1500", "a b c", "-1 2 3"] {
            assert_eq!(scheduled_in(wrong), None, "{wrong}");
        }
        assert!(scheduled(i32::MAX, 1).is_err());
    }

    #[test]
    fn idle_time_is_a_share_of_all() {
        let mut share = IdleShare::default();
        assert_eq!(share.look(), None);
        std::thread::sleep(Duration::from_millis(60));
        let share = share.look().unwrap();
        assert!((0.0..=1.0).contains(&share), "{share}");
        assert_eq!(idle_and_all("cpu  1 2 3 40 5 6 7 8 9 9\ncpu0 1"), Some((45, 72)));
        for wrong in ["", "cpu 1 2 3 4", "cpu0 1 2 3 4 5 6 7 8", "cpu a b c d e"] {
            assert_eq!(idle_and_all(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_kilobytes_are_understood() {
        assert_eq!(anonymous_in("VmRSS:\t 9 kB\nRssAnon:\t     12 kB\n"), Some(ByteCount(12288)));
        for wrong in
            ["", "RssAnon:\t12 MB\n", "RssAnon:\t-1 kB", "RssAnon:\t99999999999999999999 kB"]
        {
            assert_eq!(anonymous_in(wrong), None);
        }
    }
}
