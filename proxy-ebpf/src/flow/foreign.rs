//! Flows of kube-proxy: what netfilter translates, while this proxy takes over from it or
//! gives back to it.
//!
//! The agent sets [`Config::LEAVE_NEW`] and [`Config::FOREIGN`]; without them nothing here
//! costs more than a look at the settings for each packet that belongs to no flow.

use proxy_common::{
    config::Config,
    counter::Counter,
    foreign::{Foreign, Tuple},
    masquerade::MasqueradeKey,
};

use crate::{
    clock::now,
    counters::count,
    flow::{Flows, place},
    lookup::frontend::Destination,
    maps::{
        node, prefilter,
        scratch::Scratch,
        tables::{self, Tables},
    },
    packet::{barrier::opaque, headers::Headers, hint::Hint},
};

#[inline(always)]
fn flags() -> u32 {
    node::config().map_or(0, |config| config.flags)
}

/// Returns whether new flows are left to netfilter.
#[inline(always)]
pub fn leaves_new() -> bool {
    flags() & Config::LEAVE_NEW != 0
}

/// Returns whether kube-proxy has flows, or gets new ones.
#[inline(always)]
pub fn is_at_work() -> bool {
    flags() & (Config::LEAVE_NEW | Config::FOREIGN) != 0
}

/// Returns whether netfilter may have masqueraded a packet that leaves for kube-proxy, by a
/// port that a flow of ours has.
#[inline(always)]
pub fn may_be_masqueraded<F: Tables>(headers: &Headers<F::Addr>, hint: Hint) -> bool {
    hint == Hint::Entered && is_at_work() && prefilter::may_be_masquerade::<F>(&headers.ip.src)
}

/// Returns whether the packet in scratch memory, which belongs to no flow that goes on, is
/// left to netfilter. Not for what processes of this host send: it has been there, and was
/// not translated.
#[inline(always)]
pub fn is_left<F: Flows>(scratch: &mut Scratch<F::Addr>) -> bool {
    let flags = flags();
    if flags & (Config::LEAVE_NEW | Config::FOREIGN) == 0 {
        return false;
    }
    let left = opaque(judge::<F>(scratch, flags));
    if left {
        count(Counter::LeftToNetfilter);
    }
    left
}

#[inline(never)]
fn judge<F: Flows>(scratch: &mut Scratch<F::Addr>, flags: u32) -> bool {
    let headers = &scratch.headers;
    let goes_on = headers.ip.protocol.has_connections() && !headers.opens_connection();
    if flags & Config::LEAVE_NEW != 0 {
        if flags & Config::FOREIGN != 0
            && !goes_on
            && F::look_up(&scratch.headers, &mut scratch.frontend) == Destination::Service
        {
            enter::<F>(&scratch.headers);
        }
        return true;
    }
    if has::<F>(&of_packet::<F>(headers)) {
        return true;
    }
    // Netfilter knows the connection, or resets it. Not one of ours that has to find
    // another backend.
    if !goes_on {
        return false;
    }
    F::place(&scratch.headers, &mut scratch.key);
    !opaque(place::has_lost_its_frontend::<F>(
        &scratch.key,
        &scratch.headers,
    ))
}

/// Notes that the packet's flow is left to netfilter. Where there is no room for it, it
/// becomes ours later.
#[inline(never)]
fn enter<F: Tables>(headers: &Headers<F::Addr>) {
    let value = Foreign {
        entered: now(),
        direction: Foreign::REQUEST,
    };
    let _ = F::foreign().insert(of_packet::<F>(headers), value, tables::BPF_NOEXIST);
}

#[inline(always)]
fn of_packet<F: Tables>(headers: &Headers<F::Addr>) -> Tuple<F::Addr> {
    Tuple {
        src: headers.ip.src,
        dst: headers.ip.dst,
        src_port: headers.src_port,
        dst_port: headers.dst_port,
        protocol: headers.ip.protocol,
        zero: [0; 3],
    }
}

#[inline(always)]
fn has<F: Tables>(tuple: &Tuple<F::Addr>) -> bool {
    F::foreign().get_ptr(tuple).is_some()
}

/// Returns whether netfilter has masqueraded a client of the backend by this address and
/// port.
#[inline(always)]
pub fn has_reply<F: Tables>(reply: &MasqueradeKey<F::Addr>) -> bool {
    flags() & Config::FOREIGN != 0 && has::<F>(Tuple::of_reply(reply))
}
