//! Integration tests: real packets in network namespaces.
