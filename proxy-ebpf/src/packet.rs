//! Packets as bytes: reading, rewriting, verdicts. Knows no map.

pub mod barrier;
pub mod headers;
pub mod hint;
pub mod icmp;
pub mod ip;
pub mod parse;
pub mod rewrite;
pub mod sctp;
pub mod skb;
pub mod sum;
pub mod verdict;
