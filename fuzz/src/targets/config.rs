//! The configuration: good ones with mistakes, and what no person writes. A line of dashes ends the file; what follows are
//! its drop-ins.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use sterna_agent::{Config, ConfigError};

use crate::mutate::Mutator;
use crate::signature::{scale, skeleton};
use crate::{Made, Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "config",
    about: "the agent's configuration and its drop-ins",
    run,
    make,
    mutators: &[Mutator::Lines, Mutator::Lines],
    tokens: TOKENS,
    max_bytes: 16 << 10,
    borrowed: &[],
};

#[rustfmt::skip]
const TOKENS: &[&[u8]] = &[
    b"[host]", b"[tls]", b"[peers.beta]", b"[paths]", b"[accept]", b"[limits]", b"name = \"alpha\"",
    b"listen = \"127.0.0.1:1\"", b"bandwidth = \"1G\"", b"link_timeout = 86400", b"jobs = 0",
    b"largest_vm = \"16EiB\"", b"memory_budget = \"17179869184GiB\"", b"roots = []", b"../..", b"[[peers]]",
    b"a.b.c = {x=1}", b"\"\"\"", b"1979-05-27", b"inf", b"[peers.\"\"]", b"99999999999999999999", b"---",
];

const PATH: &str = "/etc/sterna/sterna.toml";
const DROP_IN: &str = "/etc/sterna/conf.d/a.toml";
const SEPARATOR: &str = "\n---\n";
/// An error quotes the line that is wrong, which is no longer than the input.
const ERROR_BYTES: usize = 8192;
const DAY: Duration = Duration::from_hours(24);

#[derive(Arbitrary, Debug)]
struct Text {
    port: u16,
    is_relative: bool,
    peers: Vec<(u8, bool)>,
    paths: Vec<(u8, u8)>,
    roots: Option<Vec<u8>>,
    limits: Limits,
    drop_in: Option<(u16, u8)>,
}

#[derive(Arbitrary, Debug)]
struct Limits {
    bandwidth: Option<u16>,
    jobs: Option<u8>,
    largest_vm: Option<u16>,
    link_timeout: Option<u32>,
}

fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    Ok(Made::valid(Text::arbitrary(noise)?.write().into_bytes()))
}

impl Text {
    fn write(&self) -> String {
        let folder = if self.is_relative { "" } else { "/var/" };
        let mut lines = vec![
            "[host]".to_owned(),
            "name = \"alpha\"".to_owned(),
            format!("listen = \"127.0.0.1:{}\"", self.port),
            format!("control = \"{folder}run/sterna.sock\""),
            format!("state_dir = \"{folder}lib\""),
            "[tls]".to_owned(),
            format!("ca = \"{folder}ca.pem\""),
        ];
        let mut peers: Vec<_> = self.peers.iter().take(8).collect();
        peers.sort();
        peers.dedup_by_key(|(number, _)| *number);
        for (number, accepts) in peers {
            lines.push(format!(
                "[peers.h{number}]\naddress = \"10.0.0.{number}:7837\"\naccept = {accepts}"
            ));
        }
        lines.push("[paths]".into());
        let mut paths: Vec<_> = self.paths.iter().take(8).collect();
        paths.sort();
        paths.dedup_by_key(|(from, _)| *from);
        lines.extend(paths.iter().map(|(from, to)| format!("\"/srv/{from}\" = \"/data/{to}\"")));
        lines.push("[accept]".into());
        if let Some(roots) = &self.roots {
            let roots: Vec<_> =
                roots.iter().take(5).map(|root| format!("\"/data/{root}\"")).collect();
            lines.push(format!("roots = [{}]", roots.join(", ")));
        }
        lines.push("[limits]".into());
        let limits = &self.limits;
        lines.extend(limits.bandwidth.map(|rate| format!("bandwidth = \"{}.5M\"", rate)));
        lines.extend(limits.jobs.map(|jobs| format!("jobs = {jobs}")));
        lines.extend(limits.largest_vm.map(|size| format!("largest_vm = \"{size} GiB\"")));
        lines.extend(limits.link_timeout.map(|time| format!("link_timeout = {}", time % 86_401)));
        let mut text = lines.join("\n");
        if let Some((port, jobs)) = self.drop_in {
            let drop_in = format!("[host]\nlisten = \"[::1]:{port}\"\n[limits]\njobs = {jobs}\n");
            text.push_str(SEPARATOR);
            text.push_str(&drop_in);
        }
        text
    }
}

fn run(input: &[u8]) -> Outcome {
    // What is no UTF-8 is refused where the file is read.
    let text = String::from_utf8_lossy(input);
    let mut files = text.split(SEPARATOR);
    let main = files.next().unwrap_or_default();
    let drop_ins: Vec<(&Path, &str)> = files.map(|text| (Path::new(DROP_IN), text)).collect();
    match Config::from_texts((Path::new(PATH), main), &drop_ins, &numeric) {
        Ok(config) => {
            check(&config);
            Outcome::accepted(format!(
                "{} peers, {} paths, roots {:?}, bandwidth {}",
                scale(config.peers.len() as u64),
                scale(config.paths.len() as u64),
                config.accept.roots.as_ref().map(|roots| scale(roots.len() as u64)),
                config.limits.bandwidth.is_some()
            ))
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.len() <= ERROR_BYTES + 2 * input.len(),
                "an error of {} bytes",
                text.len()
            );
            assert!(text.contains(PATH) || text.contains(DROP_IN), "which file? {text}");
            match &error {
                ConfigError::Syntax { .. } | ConfigError::DeepKey { .. } => {
                    assert!(text.contains("line "), "which line? {text}")
                }
                ConfigError::Value { key, .. } | ConfigError::Absent { key, .. } => {
                    assert!(text.contains(key), "which key? {text}");
                }
                ConfigError::Read { .. } => super::broken(&"a file was read"),
            }
            // What is wrong stands in the last line; those before it quote the file.
            Outcome::refused(skeleton(text.lines().next_back().unwrap_or_default()))
        }
    }
}

/// Names are not looked up here.
fn numeric(address: &str) -> Option<SocketAddr> {
    address.parse().ok()
}

/// What the agent relies on.
fn check(config: &Config) {
    let places = [
        &config.control,
        &config.state_dir,
        &config.run_dir,
        &config.tls.ca,
        &config.tls.cert,
        &config.tls.key,
    ];
    let roots = config.accept.roots.iter().flatten();
    let relative = places.into_iter().chain(roots).find(|path| !path.is_absolute());
    assert_eq!(relative, None, "a path that depends on where the agent was started");
    let limits = &config.limits;
    assert!(limits.jobs >= 1, "an agent without a job");
    assert!(
        (Duration::from_secs(1)..=DAY).contains(&limits.link_timeout),
        "a link timeout of {:?}",
        limits.link_timeout
    );
    assert!(limits.bandwidth.is_none_or(|rate| rate.bytes_per_second > 0), "a rate of zero");
}
