//! ICMP errors about translated flows: path-MTU discovery and "unreachable"
//! must reach the socket they are about, so the packet they quote is
//! translated back, in both directions.
//!
//! An error travels against the packet it quotes, through the same two hooks:
//! one about a request goes to the client, one about a reply to the backend.

use proxy_common::{
    checksum,
    counter::Counter,
    flow::{Flow, FlowKey},
    net::{Address, BePort, Protocol},
};

use crate::{
    counters::count,
    flow::{deliver, record::Record, reply_tuple, table},
    lookup::arrival::Arrival,
    maps::{prefilter, scratch::Scratch, tables::Tables},
    packet::{
        headers::{self, Headers, Part, Side},
        hint::{self, Hint},
        icmp::{CHECKSUM, Quote, V4_REDIRECT, V6_REDIRECT},
        parse, rewrite,
        skb::Skb,
        verdict::{Fault, Outcome},
    },
};

/// Length of both families' ICMP error header.
const HEADER: u32 = 8;

/// Reads the quoted packet at `l3` to scratch memory.
#[inline(never)]
fn quote_at<F: Tables>(skb: &Skb, scratch: &mut Scratch<F::Addr>, l3: u32) -> Option<()> {
    let skb = *skb;
    let ip = F::read_ip(skb, l3)?;
    let has_ports = ip.protocol == Protocol::UDP || ip.protocol.has_connections();
    if ip.part == Part::Later || ip.unreadable || !has_ports {
        return None;
    }
    // Eight bytes at least are quoted; a frame may go on behind the error.
    if ip.l4 + 8 > scratch.headers.ip.end {
        return None;
    }
    let (src_port, dst_port) = parse::ports(skb, ip.l4)?;
    scratch.quote = Quote {
        ip,
        l3,
        src_port,
        dst_port,
    };
    Some(())
}

impl<A: Address> Scratch<A> {
    /// Sets the key to flows of the quoted packet's sender.
    #[inline(never)]
    fn look_for_sender(&mut self) {
        let quote = &self.quote;
        self.key = FlowKey::new(quote.ip.src, quote.src_port, quote.ip.protocol);
    }

    /// Sets the key to flows of the quoted packet's receiver.
    #[inline(never)]
    fn look_for_receiver(&mut self) {
        let quote = &self.quote;
        self.key = FlowKey::new(quote.ip.dst, quote.dst_port, quote.ip.protocol);
    }

    /// Sets the reply tuple to that of the quoted packet, a request.
    #[inline(never)]
    fn look_for_request(&mut self) {
        let quote = &self.quote;
        self.reply.backend_addr = quote.ip.dst;
        self.reply.masquerade_addr = quote.ip.src;
        self.reply.backend_port = quote.dst_port;
        self.reply.masquerade_port = quote.src_port;
        self.reply.protocol = quote.ip.protocol;
        self.reply.zero = [0; 3];
    }

    /// Sets the reply tuple to that of the quoted packet, a reply.
    #[inline(never)]
    fn look_for_reply(&mut self) {
        let quote = &self.quote;
        self.reply.backend_addr = quote.ip.src;
        self.reply.masquerade_addr = quote.ip.dst;
        self.reply.backend_port = quote.src_port;
        self.reply.masquerade_port = quote.dst_port;
        self.reply.protocol = quote.ip.protocol;
        self.reply.zero = [0; 3];
    }
}

/// An error that comes in by a device.
#[inline(never)]
pub fn ingress<F: Tables>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Outcome {
    let skb = *skb;
    // A translated error may still need the egress hook.
    hint::set(skb, Hint::Entered);
    if quote_at::<F>(&skb, scratch, scratch.headers.ip.l4 + HEADER).is_none() {
        return Outcome::NEXT;
    }
    // From the client's side, about a reply.
    let (dst, quote) = (&scratch.headers.ip.dst, &scratch.quote);
    if *dst == quote.ip.src
        && (prefilter::slow::may_be_frontend::<F>(dst)
            || prefilter::may_be_node_port::<F>(quote.src_port, quote.ip.protocol))
    {
        scratch.look_for_receiver();
        let quote = &scratch.quote;
        if let Some(record) =
            table::to_frontend::<F>(&mut scratch.key, &quote.ip.src, quote.src_port)
        {
            return finish(from_client::<F>(&skb, scratch, record));
        }
    }
    // From the backend's side, about a masqueraded request.
    if prefilter::slow::may_be_masquerade::<F>(&scratch.headers.ip.dst) {
        scratch.look_for_request();
        if let Some(record) = reply_tuple::client::<F>(&scratch.reply, &mut scratch.key) {
            let flow = record.flow();
            let kept_its_port = flow.flags & Flow::<F::Addr>::OUTGOING != 0
                && scratch.key.port == scratch.reply.masquerade_port;
            return if kept_its_port || !reply_tuple::is_masquerade::<F>(flow, &scratch.reply) {
                Outcome::NEXT
            } else if flow.flags & Flow::<F::Addr>::HOST == 0 {
                finish(unmasquerade::<F>(&skb, scratch, record))
            } else {
                finish(at_client::<F>(&skb, scratch, record))
            };
        }
    }
    Outcome::NEXT
}

/// An error that leaves by a device.
#[inline(never)]
pub fn egress<F: Tables>(skb: &Skb, scratch: &mut Scratch<F::Addr>) -> Outcome {
    let skb = *skb;
    let l4 = scratch.headers.ip.l4;
    let Some(kind) = skb.read::<u8>(l4) else {
        return Outcome::NEXT;
    };
    let redirect = kind == if F::IS_V6 { V6_REDIRECT } else { V4_REDIRECT };
    let l3 = if redirect && F::IS_V6 {
        redirected_header(skb, l4)
    } else {
        Some(l4 + HEADER)
    };
    if l3.and_then(|l3| quote_at::<F>(&skb, scratch, l3)).is_none() {
        return Outcome::NEXT;
    }
    let Some(record) = about::<F>(scratch) else {
        return Outcome::NEXT;
    };
    if redirect {
        // Translated, it would tell the client that another machine has the
        // Service's address (E3).
        return Outcome::drop(Counter::RedirectDropped);
    }
    let flow = record.flow();
    let quote = &scratch.quote;
    let to_backend = flow.backend_addr == quote.ip.src && flow.backend_port == quote.src_port;
    if to_backend {
        finish(from_masquerade::<F>(&skb, scratch, record))
    } else {
        finish(at_client::<F>(&skb, scratch, record))
    }
}

/// The flow that a leaving error is about, in either direction. Its key is put
/// into scratch memory.
#[inline(always)]
fn about<F: Tables>(scratch: &mut Scratch<F::Addr>) -> Option<Record<F>> {
    let quote = &scratch.quote;
    let protocol = quote.ip.protocol;
    // A request: the error goes to the client.
    if prefilter::slow::may_be_backend::<F>(&quote.ip.dst, quote.dst_port, protocol) {
        scratch.look_for_sender();
        let quote = &scratch.quote;
        let found = table::to_backend::<F>(&mut scratch.key, &quote.ip.dst, quote.dst_port);
        if found.is_some() {
            return found;
        }
        if prefilter::slow::may_be_masquerade::<F>(&quote.ip.src) {
            scratch.look_for_request();
            let found = reply_tuple::client::<F>(&scratch.reply, &mut scratch.key);
            if found.is_some() {
                return found;
            }
        }
    }
    let quote = &scratch.quote;
    // A reply: the error goes to the backend.
    if prefilter::slow::may_be_backend::<F>(&quote.ip.src, quote.src_port, protocol) {
        scratch.look_for_receiver();
        let quote = &scratch.quote;
        let found = table::to_backend::<F>(&mut scratch.key, &quote.ip.src, quote.src_port);
        if found.is_some() {
            return found;
        }
        if prefilter::slow::may_be_masquerade::<F>(&quote.ip.dst) {
            scratch.look_for_reply();
            return reply_tuple::client::<F>(&scratch.reply, &mut scratch.key);
        }
    }
    None
}

#[inline(always)]
fn finish(result: Result<Outcome, Fault>) -> Outcome {
    match result {
        Ok(outcome) => outcome,
        Err(fault) => fault.into(),
    }
}

/// An error of the client about a reply: the quoted packet came from the
/// backend.
#[inline(never)]
fn from_client<F: Tables>(
    skb: &Skb,
    scratch: &Scratch<F::Addr>,
    record: Record<F>,
) -> Result<Outcome, Fault> {
    let (headers, quote) = (&scratch.headers, &scratch.quote);
    if Arrival::of(*skb) == Arrival::Foreign {
        return Ok(Outcome::NEXT);
    }
    let flow = record.flow();
    let mut edit = Edit::new(*skb, headers);
    edit.quoted::<F>(quote, Side::Source, &flow.backend_addr, flow.backend_port)?;
    if flow.changed_port != BePort::ZERO {
        edit.quoted::<F>(quote, Side::Destination, &quote.ip.dst, flow.changed_port)?;
    }
    edit.outer::<F>(headers, Side::Destination, &flow.backend_addr)?;
    edit.finish()
}

/// The same error where it leaves towards the backend: that one knows the
/// client by its masquerade address.
#[inline(never)]
fn from_masquerade<F: Tables>(
    skb: &Skb,
    scratch: &Scratch<F::Addr>,
    record: Record<F>,
) -> Result<Outcome, Fault> {
    let (headers, quote) = (&scratch.headers, &scratch.quote);
    let flow = record.flow();
    if flow.masquerade_port == BePort::ZERO {
        return Ok(Outcome::NEXT);
    }
    let mut edit = Edit::new(*skb, headers);
    edit.quoted::<F>(
        quote,
        Side::Destination,
        &flow.masquerade_addr,
        flow.masquerade_port,
    )?;
    if headers.ip.src == quote.ip.dst {
        edit.outer::<F>(headers, Side::Source, &flow.masquerade_addr)?;
    }
    edit.finish()
}

/// An error about a masqueraded request: it is for the client, whose side of
/// the translation follows where it leaves.
#[inline(never)]
fn unmasquerade<F: Tables>(
    skb: &Skb,
    scratch: &Scratch<F::Addr>,
    record: Record<F>,
) -> Result<Outcome, Fault> {
    let (quote, client) = (&scratch.quote, &scratch.key);
    if Arrival::of(*skb) == Arrival::Foreign {
        return Ok(Outcome::NEXT);
    }
    let mut edit = Edit::new(*skb, &scratch.headers);
    let port = record.flow().port_between(client.port);
    edit.quoted::<F>(quote, Side::Source, &client.addr, port)?;
    edit.outer::<F>(&scratch.headers, Side::Destination, &client.addr)?;
    edit.finish()
}

/// Makes an error about a request what the client itself would see: about a
/// packet from it to the frontend.
#[inline(never)]
fn at_client<F: Tables>(
    skb: &Skb,
    scratch: &Scratch<F::Addr>,
    record: Record<F>,
) -> Result<Outcome, Fault> {
    let (headers, quote, client) = (&scratch.headers, &scratch.quote, &scratch.key);
    let flow = record.flow();
    let mut edit = Edit::new(*skb, headers);
    edit.quoted::<F>(quote, Side::Source, &client.addr, client.port)?;
    edit.quoted::<F>(
        quote,
        Side::Destination,
        &flow.frontend_addr,
        flow.frontend_port,
    )?;
    if headers.ip.src == quote.ip.dst {
        edit.outer::<F>(headers, Side::Source, &flow.frontend_addr)?;
    }
    edit.outer::<F>(headers, Side::Destination, &client.addr)?;
    edit.finish()?;
    Ok(deliver::hand_back(*skb, flow))
}

/// Finds the packet quoted by an `ICMPv6` redirect (RFC 4861 sections 4.5, 4.6.3).
#[inline(always)]
fn redirected_header(skb: Skb, l4: u32) -> Option<u32> {
    const REDIRECTED: u8 = 4;
    let mut offset = l4 + 40;
    let mut count = 0;
    while count < 3 {
        let [kind, length]: [u8; 2] = skb.read(offset)?;
        if kind == REDIRECTED {
            return Some(offset + 8);
        }
        if length == 0 {
            return None;
        }
        offset += u32::from(length) * 8;
        count += 1;
    }
    None
}

/// Changes to an ICMP error, and what they do to its checksum.
struct Edit {
    skb: Skb,
    /// Offset of the ICMP checksum.
    checksum: u32,
    /// Offset of the error's end.
    end: u32,
    /// Partial sum of all changes below the ICMP header.
    difference: u32,
}

impl Edit {
    #[inline(always)]
    fn new<A>(skb: Skb, headers: &Headers<A>) -> Self {
        Self {
            skb,
            checksum: headers.ip.l4 + CHECKSUM,
            end: headers.ip.end,
            difference: 0,
        }
    }

    /// Rewrites one side of the quoted packet, with the checksums it has.
    #[inline(never)]
    fn quoted<F: Tables>(
        &mut self,
        quote: &Quote<F::Addr>,
        side: Side,
        addr: &F::Addr,
        port: BePort,
    ) -> Result<(), Fault> {
        let (old_addr, old_port) = match side {
            Side::Source => (&quote.ip.src, quote.src_port),
            Side::Destination => (&quote.ip.dst, quote.dst_port),
        };
        let offset = quote.l3 + rewrite::addr_offset::<F>(side);
        let addr_change = rewrite::address::<F>(&self.skb, offset, old_addr, addr)?;
        let port_change = checksum::add(u32::from(!old_port.to_bits()), u32::from(port.to_bits()));
        self.skb
            .write(quote.ip.l4 + headers::port_offset(side), port)?;
        let mut change = checksum::add(addr_change, port_change);
        if !F::IS_V6 {
            change = checksum::add(change, self.change_checksum(quote.l3 + 10, addr_change)?);
        }
        let (offset, optional) = if quote.ip.protocol == Protocol::UDP {
            (6, true)
        } else {
            (16, false)
        };
        // Only the first eight bytes of the transport header are sure to be
        // quoted: TCP's checksum may be missing. SCTP's is left as it is: who
        // gets a part of a packet cannot check it.
        let offset = quote.ip.l4 + offset;
        if quote.ip.protocol != Protocol::SCTP
            && offset + 2 <= self.end
            && let Some(old) = self.skb.read::<u16>(offset)
            && !(optional && old == 0)
        {
            let both = checksum::add(addr_change, port_change);
            change = checksum::add(change, self.change_checksum(offset, both)?);
        }
        self.difference = checksum::add(self.difference, change);
        Ok(())
    }

    /// Adds `difference` to the quoted checksum at `offset` and returns what
    /// that change itself adds.
    #[inline(always)]
    fn change_checksum(&self, offset: u32, difference: u32) -> Result<u32, Fault> {
        let old: u16 = self.skb.read(offset).ok_or(Fault)?;
        let new = checksum::update(old, difference);
        self.skb.write(offset, new)?;
        Ok(checksum::add(u32::from(!old), u32::from(new)))
    }

    /// Rewrites an address of the error's own IP header.
    #[inline(never)]
    fn outer<F: Tables>(
        &mut self,
        headers: &Headers<F::Addr>,
        side: Side,
        addr: &F::Addr,
    ) -> Result<(), Fault> {
        let old = match side {
            Side::Source => &headers.ip.src,
            Side::Destination => &headers.ip.dst,
        };
        let offset = headers.l3 + rewrite::addr_offset::<F>(side);
        let change = rewrite::address::<F>(&self.skb, offset, old, addr)?;
        F::add_to_header_checksum(self.skb, headers.l3, change)?;
        if F::IS_V6 {
            rewrite::add_address::<F>(self.skb, self.checksum, change, 0)?;
        }
        Ok(())
    }

    /// Brings the ICMP checksum up to date.
    #[inline(always)]
    fn finish(self) -> Result<Outcome, Fault> {
        count(Counter::IcmpErrorTranslated);
        self.skb
            .add_to_checksum(self.checksum, self.difference, 0)?;
        Ok(Outcome::NEXT)
    }
}
