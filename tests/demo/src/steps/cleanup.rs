//! `podway cleanup` on a node.

use anyhow::{Context, Result};

use crate::node_state::{NodeState, files};
use crate::podway::Dataplane;
use crate::require;
use crate::screen::Screen;
use crate::stage::Stage;
use crate::words::list;

pub(crate) fn show(stage: &mut Stage<'_>, screen: &Screen) -> Result<()> {
    let node = stage.shopper().node_name().to_owned();
    screen.step(
        "podway cleanup leaves nothing",
        "Whoever tries podway must get rid of it as easily. The node's rules, routes, devices and pinned programs are \
         compared with what stood there before podway first ran; the table of the counter above, which is not podway's, \
         must survive.",
    );
    stage.podway(&node)?.stop()?;
    let before = NodeState::read(&stage.nodes[&node])?;
    let pinned = files(&stage.podways[&node])?;
    let untouched = &stage.untouched[&node];
    let made = before.beyond(untouched).len();
    require(made > 0 && !pinned.is_empty(), || format!("podway left nothing to clean up on {node}"))?;
    let output = stage.podways[&node].cleanup()?;
    require(output.status.success(), || format!("podway cleanup: {}\n{}", output.status, output.stderr))?;
    let after = NodeState::read(&stage.nodes[&node])?;
    let left = [after.beyond(untouched), untouched.beyond(&after)];
    require(left[0].is_empty(), || format!("left behind on {node}:\n{}", left[0].join("\n")))?;
    require(left[1].is_empty(), || format!("missing on {node}:\n{}", left[1].join("\n")))?;
    let files = files(&stage.podways[&node])?;
    require(files.is_empty(), || format!("left behind on {node}: {}", list(&files)))?;
    screen.held(format!(
        "{node} is as it was: {made} lines of rules, routes and devices and the {} pinned programs and files are gone, \
         the other {} lines stand",
        pinned.len(),
        after.size()
    ));
    Ok(())
}

/// Starts podway again where it was cleaned up, for a demo that stays up.
pub(crate) fn undo(stage: &mut Stage<'_>) -> Result<()> {
    let node = stage.shopper().node_name().to_owned();
    stage.podway(&node)?.start(Dataplane::Nftables)?;
    stage.podway(&node)?.wait_until_programmed()?;
    stage.wait_until_open().with_context(|| format!("podway on {node} after its cleanup"))
}
