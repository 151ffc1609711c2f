//! Kernel: links, addresses, routes, neighbours and FDB entries through rtnetlink.
