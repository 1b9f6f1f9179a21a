//! Nothing: the programs are the binary `tandem`, built for the BPF target.
//! This library exists so that a build dependency on the crate is possible,
//! which makes cargo rebuild the programs when they change.
#![no_std]
