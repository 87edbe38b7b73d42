//! How long certificates still last: told by `check`, and by the log at the start and once a day. One that ends while the
//! agent runs keeps every new connection from being made, in both directions; guests do not notice.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sterna_host::tls::Validity;

use crate::agent::Agent;

/// A certificate that lasts fewer days is warned of.
const WARN_BELOW_DAYS: i64 = 30;
/// The log tells once in so long.
const EVERY: Duration = Duration::from_hours(24);

/// A certificate that ends soon, or has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expiry {
    /// That it has.
    pub is_over: bool,
    /// Which one, when, and what to do.
    pub message: String,
}

/// Whose certificate it is: how it is named, and how it is renewed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whose<'a> {
    /// This host's, in this file.
    Ours(&'a str, &'a std::path::Path),
    /// The authority's, in this file.
    Authority(&'a std::path::Path),
    /// A peer's.
    Peer(&'a str),
}

impl Expiry {
    /// What is to be said of a certificate at `now_unix`, in seconds since 1970; nothing of one that lasts long.
    #[must_use]
    pub(crate) fn of(whose: Whose<'_>, validity: Validity, now_unix: i64) -> Option<Self> {
        let days = validity.days_left(now_unix);
        if days >= WARN_BELOW_DAYS {
            return None;
        }
        let is_over = now_unix > validity.not_after_unix;
        let when = match days {
            _ if is_over => format!("expired {}", days_in_words(-days - 1, "ago")),
            days => format!("expires {}", days_in_words(days, "from now")),
        };
        let message = format!("{} {when} ({validity}): {}", whose.name(), whose.remedy());
        Some(Self { is_over, message })
    }
}

fn days_in_words(days: i64, direction: &str) -> String {
    match days {
        0 => "within a day".to_owned(),
        1 => format!("1 day {direction}"),
        days => format!("{days} days {direction}"),
    }
}

impl Whose<'_> {
    fn name(self) -> String {
        match self {
            Self::Ours(_, path) => format!("this host's certificate {}", path.display()),
            Self::Authority(path) => format!("the authority's certificate in {}", path.display()),
            Self::Peer(peer) => format!("{peer}'s certificate"),
        }
    }

    fn remedy(self) -> String {
        match self {
            Self::Ours(host, path) => format!(
                "issue a new one with `sterna pki issue` for {host}, put it and its key where {} is, and restart the agent; guests run on",
                path.display()
            ),
            Self::Authority(_) => "make a new authority with `sterna pki init`, add its certificate to that file on every host, then issue new certificates for the hosts".to_owned(),
            Self::Peer(peer) => format!("issue a new one with `sterna pki issue` for {peer}"),
        }
    }
}

/// Seconds since 1970.
#[must_use]
pub(crate) fn now_unix() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// What is to be said of this host's own certificates.
#[must_use]
pub(crate) fn of_this_host(agent: &Agent, now_unix: i64) -> Vec<Expiry> {
    let (identity, files) = (&agent.identity, &agent.config.tls);
    let ours = Whose::Ours(agent.config.name.as_str(), &files.cert);
    let expiries = [
        Expiry::of(ours, identity.validity(), now_unix),
        Expiry::of(Whose::Authority(&files.ca), identity.ca_validity(), now_unix),
    ];
    expiries.into_iter().flatten().collect()
}

/// Tells the log, now and once a day, for as long as the agent runs.
pub(crate) async fn tell(agent: Arc<Agent>) {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        for Expiry { is_over, message } in of_this_host(&agent, now_unix()) {
            if is_over {
                tracing::error!("{message}");
            } else {
                tracing::warn!("{message}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const DAY: i64 = 86_400;
    /// 2026-11-22, at noon.
    const END: i64 = 1_795_348_800;

    fn at(now_unix: i64) -> Option<Expiry> {
        let validity = Validity { not_before_unix: 0, not_after_unix: END };
        Expiry::of(Whose::Ours("alpha", Path::new("/pki/cert.pem")), validity, now_unix)
    }

    #[test]
    fn a_certificate_is_warned_of_in_its_last_month() {
        assert_eq!(at(END - 30 * DAY), None);
        let soon = at(END - 30 * DAY + 1).unwrap();
        assert!(!soon.is_over);
        assert!(
            soon.message.contains(
                "certificate /pki/cert.pem expires 29 days from now (1970-01-01 to 2026-11-22)"
            ),
            "{}",
            soon.message
        );
        assert!(soon.message.contains("`sterna pki issue` for alpha"), "{}", soon.message);
        assert!(at(END - 2 * DAY + 1).unwrap().message.contains("expires 1 day from now"));
        let last = at(END).unwrap();
        assert!(!last.is_over && last.message.contains("expires within a day"), "{last:?}");
    }

    #[test]
    fn a_certificate_that_has_ended_is_an_error() {
        let over = at(END + 1).unwrap();
        assert!(over.is_over && over.message.contains("expired within a day"), "{over:?}");
        assert!(at(END + 10 * DAY).unwrap().message.contains("expired 9 days ago"));
    }

    #[test]
    fn each_certificate_has_its_remedy() {
        let validity = Validity { not_before_unix: 0, not_after_unix: END };
        let said = |whose| Expiry::of(whose, validity, END).unwrap().message;
        assert!(said(Whose::Authority(Path::new("/ca"))).contains("sterna pki init"));
        assert!(said(Whose::Peer("beta")).starts_with("beta's certificate expires"));
    }
}
