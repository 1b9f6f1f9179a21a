//! Answers to clients, and ICMP messages about flows.

pub mod echo;
pub mod family;
pub mod icmp_error;
mod icmp_message;
mod limit;
pub mod refuse;
mod reset;
