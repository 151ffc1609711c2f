//! Kernel: the nftables schema, its rows, and the one door through which nft is run.
