//! What a soak came to, as it is committed: `sim/results/soak.json`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use sterna_sim::campaign::Tally;

/// A soak that is over.
#[derive(Debug)]
pub(crate) struct Soaked {
    /// The first seed; the others follow it.
    pub(crate) first_seed: u64,
    /// How many seeds ran at a time.
    pub(crate) cores: usize,
    /// How long.
    pub(crate) took: Duration,
    /// What the stories came to.
    pub(crate) tally: Tally,
    /// Those in which a law was broken.
    pub(crate) failures: Vec<String>,
}

impl Soaked {
    /// Replaces the result at once: whoever is killed here leaves a whole one.
    pub(crate) fn write(&self) -> io::Result<()> {
        let result = json!({
            "build": build(),
            "cores": self.cores,
            "seconds": self.took.as_secs(),
            "first_seed": self.first_seed,
            "seeds": self.tally.runs,
            "events": self.tally.events,
            "stories": {
                "ended": self.tally.outcomes,
                "links_broke_in_the_rounds": {
                    "joined_again_and_done": self.tally.joined_again,
                    "given_up_and_rolled_back": self.tally.given_up,
                },
                "became_whole_at_once": self.tally.whole,
                "became_whole_after_rejoining": self.tally.rejoined,
                "did_not_become_whole": self.tally.lacking,
            },
            "failures": self.failures,
        });
        let file = home().join("results/soak.json");
        std::fs::create_dir_all(file.parent().unwrap_or(&file))?;
        let draft = file.with_extension("json.new");
        std::fs::write(&draft, format!("{result:#}\n"))?;
        std::fs::rename(&draft, &file)
    }
}

/// The commit, with a mark when what is simulated differs from it.
fn build() -> String {
    let git = |words: &[&str]| {
        let output = Command::new("git").arg("-C").arg(home()).args(words).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "not known: no git here".to_owned();
    };
    let sources = ["status", "--porcelain", "--", "src", "../crates", "../Cargo.lock"];
    let is_clean = git(&sources).is_some_and(|changes| changes.is_empty());
    if is_clean { commit } else { commit + "+" }
}

fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}
