//! A network with holes, as aligned blocks.

use ipnet::IpNet;

use crate::overlaps::overlap;
use crate::units::Family;

/// What is left of `whole` without `taken`: the largest blocks there are, lowest address first. Nothing overlaps
/// another, `taken` may.
pub(crate) fn free(whole: IpNet, taken: &[IpNet]) -> Vec<IpNet> {
    let inside: Vec<IpNet> = taken.iter().filter(|net| overlap(net, &whole)).copied().collect();
    if inside.is_empty() {
        return vec![whole];
    }
    if inside.iter().any(|net| net.contains(&whole)) {
        return Vec::new();
    }
    // `whole` strictly contains a network, so it has halves.
    let halves = whole.subnets(whole.prefix_len() + 1);
    halves.into_iter().flatten().flat_map(|half| free(half, &inside)).collect()
}

/// The smallest block that holds a network of this prefix length, the lowest of several; that block's first such
/// network.
pub(crate) fn best_fit(blocks: &[IpNet], prefix_len: u8) -> Option<IpNet> {
    let fitting = blocks.iter().filter(|block| block.prefix_len() <= prefix_len);
    // Of equal keys max_by_key takes the last: the blocks are gone through backwards.
    let block = fitting.rev().max_by_key(|block| block.prefix_len())?;
    IpNet::new(block.addr(), prefix_len).ok()
}

/// A network of this prefix length near the end of a block that holds one: the last one, with IPv6 the first one of
/// the last /64, which can be read.
pub(crate) fn near_end(block: &IpNet, prefix_len: u8) -> Option<IpNet> {
    if block.prefix_len() > prefix_len {
        return None;
    }
    let within = match Family::of(block) {
        Family::V4 => prefix_len,
        Family::V6 => prefix_len.min(64).max(block.prefix_len()),
    };
    let last = IpNet::new(block.broadcast(), within).ok()?.trunc();
    IpNet::new(last.addr(), prefix_len).ok()
}

/// The widest network around `net` that lies in `whole` and overlaps nothing that is taken.
pub(crate) fn widest(net: IpNet, whole: &IpNet, taken: &[IpNet]) -> IpNet {
    let wider = |net: &IpNet| {
        let wider = net.supernet()?;
        (whole.contains(&wider) && !taken.iter().any(|taken| overlap(taken, &wider))).then_some(wider)
    };
    std::iter::successors(Some(net), wider).last().unwrap_or(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n23_what_is_left_are_the_largest_blocks() {
        let left = free(net("10.0.0.0/8"), &[net("10.0.0.0/16"), net("10.0.3.0/24"), net("10.192.0.0/10")]);
        let expected = [
            "10.1.0.0/16",
            "10.2.0.0/15",
            "10.4.0.0/14",
            "10.8.0.0/13",
            "10.16.0.0/12",
            "10.32.0.0/11",
            "10.64.0.0/10",
            "10.128.0.0/10",
        ];
        assert_eq!(left, expected.map(net));
        assert_eq!(free(net("10.1.0.0/16"), &[net("10.0.0.0/8")]), []);
        assert_eq!(free(net("10.1.0.1/32"), &[]), [net("10.1.0.1/32")]);
    }

    #[test]
    fn n23_the_smallest_block_that_holds_it_is_taken_the_lowest_of_several() {
        let blocks = ["10.0.0.0/14", "10.8.0.0/16", "10.9.0.0/16", "10.12.0.0/18"].map(net);
        assert_eq!(best_fit(&blocks, 17), Some(net("10.8.0.0/17")));
        assert_eq!(best_fit(&blocks, 18), Some(net("10.12.0.0/18")));
        assert_eq!(best_fit(&blocks, 15), Some(net("10.0.0.0/15")));
        assert_eq!(best_fit(&blocks, 13), None);
        assert_eq!(near_end(&blocks[0], 16), Some(net("10.3.0.0/16")));
        assert_eq!(near_end(&blocks[1], 15), None);
        assert_eq!(near_end(&net("fd00::/48"), 112), Some(net("fd00:0:0:ffff::/112")));
        assert_eq!(near_end(&net("fd00::/80"), 112), Some(net("fd00::/112")));
    }

    #[test]
    fn n23_a_network_is_widened_up_to_what_is_taken() {
        let whole = net("10.0.0.0/8");
        assert_eq!(widest(net("10.8.0.0/16"), &whole, &[net("10.16.0.0/16")]), net("10.0.0.0/12"));
        assert_eq!(widest(net("10.8.0.0/16"), &whole, &[net("10.9.0.0/24")]), net("10.8.0.0/16"));
        assert_eq!(widest(net("10.8.0.0/16"), &whole, &[]), whole);
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }
}
