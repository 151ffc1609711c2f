//! Kernel: loads, pins and feeds the eBPF programs.
