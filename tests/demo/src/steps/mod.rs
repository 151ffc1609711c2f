//! The steps in their order. Each shows something, checks it, and fails with what was seen when it does not hold.

mod balance;
pub(crate) mod cleanup;
mod dataplanes;
mod departure;
mod network;
mod repair;
mod restart;
mod services;

use anyhow::Result;

use crate::screen::Screen;
use crate::stage::Stage;

type Step = fn(&mut Stage<'_>, &Screen) -> Result<()>;

const STEPS: [Step; 10] = [
    network::show_nodes,
    services::show,
    balance::show,
    network::show_path,
    departure::show_endpoint,
    departure::show_node,
    restart::show,
    repair::show,
    dataplanes::show,
    cleanup::show,
];

/// How many there are.
pub(crate) const COUNT: usize = STEPS.len();

/// Shows all, up to the first that does not hold.
pub(crate) fn show_all(stage: &mut Stage<'_>, screen: &Screen) -> Result<()> {
    STEPS.iter().try_for_each(|step| screen.in_step(step(stage, screen)))
}
