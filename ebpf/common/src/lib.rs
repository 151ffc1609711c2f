//! Keys and values of the eBPF maps, shared by the programs and their loader.
