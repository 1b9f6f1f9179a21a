//! Ranges of cluster IPs: what no Service has of them leads nowhere (S47).

use proxy_common::{
    config::{Config, Prefix},
    net::Address,
};

use crate::{
    maps::{node, tables::Tables},
    packet::headers::Headers,
};

/// Returns whether the packet opens a flow, or is of a protocol that does not tell, to
/// an address for cluster IPs. For packets whose address is no frontend's.
#[inline(always)]
pub fn is_entered<F: Tables>(headers: &Headers<F::Addr>) -> bool {
    if headers.ip.protocol.has_connections() && !headers.opens_connection() {
        return false;
    }
    let Some(config) = node::config() else {
        return false;
    };
    let ranges = F::service_ranges(config);
    let mut index = 0;
    while index < Config::SERVICE_RANGES && !is_unused(&ranges[index]) {
        if contains(&ranges[index], &headers.ip.dst) {
            return true;
        }
        index += 1;
    }
    false
}

/// Returns whether this entry and all after it are [`Prefix::NONE`].
#[inline(always)]
fn is_unused<A: Address>(prefix: &Prefix<A>) -> bool {
    prefix.addr.word(0) == A::ONES.word(0)
}

/// [`Prefix::contains`], told by the first word nearly always.
#[inline(always)]
fn contains<A: Address>(prefix: &Prefix<A>, addr: &A) -> bool {
    (addr.word(0) ^ prefix.addr.word(0)) & prefix.mask.word(0) == 0 && prefix.contains(addr)
}
