//! The tables: what is measured, over what, by whom, and what is aimed at.
//!
//! A new link, load or contender is one entry in its file, and its name in a row of a suite's cells; a new suite is a file
//! of cells and an entry in [`suites`].

mod cell;
mod contenders;
mod follow;
mod links;
mod loads;
mod moves;
mod suites;
mod three_stage;

pub(crate) use cell::{Aim, Cell, Metric, Version};
pub(crate) use contenders::{Channel, Contender, How, Standing, StockMode, Switch};
pub(crate) use links::{Link, Shape};
pub(crate) use loads::{Client, Load, Program};
pub(crate) use suites::{MOVES, SUITES, Suite};
