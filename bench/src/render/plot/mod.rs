//! Plots, as SVG: all ratios at a glance, and what the clients of redis see while it is moved.

mod clients;
mod ratios;

use std::path::Path;

use sterna_e2e::{Error, Result};

pub(super) use clients::draw_all as clients;
pub(super) use ratios::draw_all as ratios;

/// What the drawing library answers.
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn written(drawn: Drawn, path: &Path) -> Result<()> {
    drawn
        .map_err(|error| Error::unexpected(path.display().to_string(), "a plot", error.to_string()))
}
