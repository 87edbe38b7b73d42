//! The tables: what is measured, over what, by whom, and what is aimed at.
//!
//! A new link, load or contender is one entry in its file, and its name in a row of [`cells`].

mod cells;
mod contenders;
mod links;
mod loads;

pub(crate) use cells::{Aim, CELLS, Cell, Metric, Version};
pub(crate) use contenders::{Channel, Contender, How, STERNA, Standing, StockMode, Switch};
pub(crate) use links::{Link, Shape};
pub(crate) use loads::{Client, Load, Program};
