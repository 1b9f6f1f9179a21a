//! Answers to clients, and ICMP messages about flows.

pub mod echo;
pub mod icmp_error;
pub mod refuse;
