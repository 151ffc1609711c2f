//! Network namespaces, packet senders and a control plane for the tests, the demo and the benchmarks.
