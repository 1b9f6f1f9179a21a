//! Packets through the real programs, loaded by the real verifier and run by
//! `BPF_PROG_TEST_RUN`: bytes in, bytes and verdict out.

mod affinity;
mod direct;
mod echo;
mod external;
mod fair_share;
mod flood;
mod foreign;
mod forward;
mod fragments;
mod full;
mod fuzz;
mod headers;
mod icmp;
mod masquerade;
mod masquerade_ports;
mod node_ports;
mod outgoing;
mod paths;
mod refused;
mod sctp;
mod sharing;
mod slow_path;
mod source_ranges;
mod spoofed;
mod takeover;
mod unallocated;
mod unreadable;
mod uplinks;
mod verifier_budget;
