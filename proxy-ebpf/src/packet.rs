//! Packets as bytes: reading, rewriting, verdicts. Knows no map.

pub mod barrier;
pub mod hint;
pub mod parse;
pub mod rewrite;
pub mod sctp;
pub mod skb;
pub mod verdict;
