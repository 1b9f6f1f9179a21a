//! A client asks, and everything that comes back must come from what it asked.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    frame::{Frame, SCTP, TCP, UDP},
    player::Player,
    world,
};
use crate::packet::{Cast, Hook, Packet, Ran, Verdict, chunk};

/// Offsets of a datagram's fragments: multiples of eight.
const CUTS: [usize; 4] = [0, 24, 48, usize::MAX];
/// Bytes of a packet that errors quote.
const QUOTED: [usize; 2] = [8, 20];

/// A client and whom it talks to: as it sees it, and as the backend does.
struct Way {
    protocol: u8,
    client: SocketAddr,
    frontend: SocketAddr,
    /// The client, as the backend sees it.
    seen: SocketAddr,
    backend: SocketAddr,
    /// The client is a process of the node.
    host: bool,
}

/// A client asks; if that leads to a backend, its answer and errors about both
/// reach whom they are for.
pub(super) fn ask(player: &mut Player, request: &[u8], host: bool) -> Result<()> {
    let Some(asked) = Frame::of(request, false) else {
        return Ok(());
    };
    let Some(sent) = send(player, request, host)? else {
        return Ok(());
    };
    let Some(way) = Way::of(&asked, &sent, host)? else {
        return Ok(());
    };
    way.answer(player).context("the backend answers")?;
    player.answered += 1;
    let again = send(player, &way.request().bytes(), host)?;
    let again = again.context("the client goes on, and is not let through")?;
    let other = Way::of(&asked, &again, host)?.context("the client goes on, untranslated")?;
    ensure!(
        (other.seen, other.backend) == (way.seen, way.backend),
        "the client goes on from {} to {}, not from {} to {}",
        other.seen,
        other.backend,
        way.seen,
        way.backend
    );
    way.tell_client(player)
        .context("a router complains to the client")?;
    if !host {
        way.tell_backend(player)
            .context("the client complains to the backend")?;
    }
    Ok(())
}

/// Leads a client's packet through the hooks. Returns `None` if it does not go on.
fn send(player: &mut Player, packet: &[u8], host: bool) -> Result<Option<Vec<u8>>> {
    let mut ran = if host {
        player.meet(Hook::HostEgress, packet)?
    } else {
        player.through(packet)?
    };
    // Sent to the device of the backend, where it meets the hook again, or refused.
    if host && ran.verdict == Verdict::Redirect {
        let [before, after] = [packet, &ran.packet].map(|bytes| Frame::of(bytes, false));
        if after.map(|frame| frame.dst()) == before.map(|frame| frame.src()) {
            return Ok(None);
        }
        ran = player.meet(Hook::HostEgress, &ran.packet)?;
    }
    Ok((ran.verdict == Verdict::Next).then_some(ran.packet))
}

impl Way {
    /// Returns `None` if the packet was sent to the address that it had.
    fn of(asked: &Frame<'_>, sent: &[u8], host: bool) -> Result<Option<Self>> {
        let sent = Frame::of(sent, false).context("no packet")?;
        let ((client, frontend), (seen, backend)) = (asked.ends(), sent.ends());
        let way = Self {
            protocol: asked.protocol,
            client,
            frontend,
            seen,
            backend,
            host,
        };
        if way.backend == way.frontend {
            return Ok(None);
        }
        let backends = world::backends(Cast::of(asked.family));
        ensure!(backends.contains(&way.backend), "sent to {}", way.backend);
        Ok(Some(way))
    }

    /// A packet of the client that opens nothing.
    fn request(&self) -> Packet {
        let (src, dst) = (self.client, self.frontend);
        match self.protocol {
            TCP => Packet::data(src, dst),
            SCTP => Packet::sctp(src, dst, chunk::DATA),
            _ => Packet::udp(src, dst),
        }
    }

    /// The backend's first packet.
    fn reply(&self) -> Packet {
        let (src, dst) = (self.backend, self.seen);
        match self.protocol {
            TCP => Packet::syn_ack(src, dst),
            SCTP => Packet::sctp(src, dst, chunk::INIT_ACK),
            _ => Packet::udp(src, dst),
        }
    }

    fn answer(&self, player: &mut Player) -> Result<()> {
        let bytes = self.back(player, &self.reply())?;
        let (src, dst) = Frame::of(&bytes, false).context("no packet")?.ends();
        ensure!(
            (src, dst) == (self.frontend, self.client),
            "{} gets its answer as one from {src} to {dst}, not from {}",
            self.client,
            self.frontend
        );
        Ok(())
    }

    /// A router tells the client that its packet is too big.
    fn tell_client(&self, player: &mut Player) -> Result<()> {
        let router = Cast::of(crate::Family::of(self.client.ip())).router();
        let about = self.request().from(self.seen).to(self.backend);
        for quoted in QUOTED {
            let error = self.back(player, &Packet::too_big(router, &about, quoted))?;
            let told = [self.client, self.client, self.frontend];
            is_told(&error, told)?;
        }
        Ok(())
    }

    /// The client tells the backend that the answer reached nobody.
    fn tell_backend(&self, player: &mut Player) -> Result<()> {
        let about = self.reply().from(self.frontend).to(self.client);
        for quoted in QUOTED {
            let error = Packet::port_unreachable(self.client.ip(), &about, quoted);
            let ran = player.through(&error.bytes())?;
            ensure!(ran.verdict == Verdict::Next, "{:?}", ran.verdict);
            is_told(&ran.packet, [self.backend, self.backend, self.seen])?;
        }
        Ok(())
    }

    /// Leads a packet back to the client.
    fn back(&self, player: &mut Player, packet: &Packet) -> Result<Vec<u8>> {
        let arrives = |ran: &Ran| match ran.verdict {
            Verdict::Next => true,
            Verdict::Redirect => self.host,
            _ => false,
        };
        let ran = if self.host {
            player.meet(Hook::Ingress, &packet.bytes())?
        } else {
            player.through(&packet.bytes())?
        };
        if !arrives(&ran) {
            bail!("it does not come back: {:?} {:?}", ran.verdict, ran.counted);
        }
        Ok(ran.packet)
    }
}

/// An error reached whom it is for, about a packet of theirs.
fn is_told(error: &[u8], [receiver, src, dst]: [SocketAddr; 3]) -> Result<()> {
    let frame = Frame::of(error, false).context("no packet")?;
    let quote = frame.quote().context("no error any more")?;
    let about = quote.ends();
    ensure!(
        frame.dst() == receiver.ip() && about == (src, dst),
        "{} is told about a packet from {} to {}, not {receiver} about one from {src} to {dst}",
        frame.dst(),
        about.0,
        about.1
    );
    Ok(())
}

/// A client asks in three fragments, and is answered in three.
pub(super) fn ask_in_pieces(player: &mut Player, request: &[u8]) -> Result<()> {
    let Some(asked) = Frame::of(request, false) else {
        return Ok(());
    };
    let (client, frontend) = asked.ends();
    let payload = asked.body().get(8..).unwrap_or_default().to_vec();
    ensure!(
        asked.protocol == UDP && payload.len() > CUTS[2],
        "no long datagram"
    );
    let request = Packet::udp(client, frontend).with_payload(payload.clone());
    let Some((seen, backend)) = lead_pieces(player, &request)? else {
        return Ok(());
    };
    if backend == frontend {
        return Ok(());
    }
    let reply = Packet::udp(backend, seen).with_payload(payload);
    let ends = lead_pieces(player, &reply)?;
    ensure!(
        ends == Some((frontend, client)),
        "the answer in pieces comes as {ends:?}, not from {frontend} to {client}"
    );
    player.answered += 1;
    Ok(())
}

/// Leads a datagram through in pieces, and puts together what goes on. Returns its ends;
/// `None` if nothing does.
fn lead_pieces(player: &mut Player, datagram: &Packet) -> Result<Option<(SocketAddr, SocketAddr)>> {
    let whole = datagram.ip_bytes();
    let body = whole[whole.len() - 8 - datagram.payload.len()..].to_vec();
    // Its checksum, which others hardly have.
    let id = u16::from_be_bytes([body[6], body[7]]);
    let (mut together, mut ends, mut dropped) = (Vec::new(), None, 0);
    for cut in CUTS.windows(2) {
        let (start, end) = (cut[0], cut[1].min(body.len()));
        let offset = u16::try_from(start).expect("a short datagram");
        // Built as another protocol, for the checksum is that of the whole.
        let piece = Packet::other(datagram.src, datagram.dst, UDP)
            .with_payload(body[start..end].to_vec())
            .with_fragment(id, offset, end < body.len());
        let piece = piece.bytes();
        let ran = player.through(&piece)?;
        if ran.verdict != Verdict::Next {
            dropped += 1;
            continue;
        }
        let frame = Frame::of(&ran.packet, false).context("no packet")?;
        if start == 0 {
            ends = Some(frame.ends());
        }
        // What is left of a datagram that was refused is left alone.
        let same = match ends {
            Some((src, dst)) => (src.ip(), dst.ip()) == (frame.src(), frame.dst()),
            None => ran.packet == piece,
        };
        ensure!(same, "a fragment goes on as {frame}, the first as {ends:?}");
        together.extend(frame.body());
    }
    let Some((src, dst)) = ends else {
        return Ok(None);
    };
    ensure!(dropped == 0, "{dropped} fragments of three are dropped");
    let expected = Packet::udp(src, dst).with_payload(datagram.payload.clone());
    let right = expected.ip_bytes();
    ensure!(
        right.ends_with(&together),
        "the fragments are no right datagram any more"
    );
    Ok(Some((src, dst)))
}
