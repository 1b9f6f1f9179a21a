//! Packets that look like a masqueraded flow to filters and reply tuples, and are none.

use std::net::SocketAddr;

use proxy_common::{
    net::{AddrV4, AddrV6},
    prefilter::frontend_bit,
};
use proxy_tests::{
    Family,
    packet::{Cast, Datapath, Hook, Packet, ServicePort},
};
use rstest::rstest;

use crate::masquerade::{open, returns};

/// The prefilter may take the node's address for a frontend's. That costs a
/// look-up, not the reply.
#[rstest]
fn replies_pass_also_where_the_prefilter_errs(#[values(Family::V4, Family::V6)] family: Family) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let backend = cast.endpoint(1);
    let frontend = look_alike(cast.node());
    datapath.serve(&ServicePort::tcp(frontend, &[backend]));
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    let masquerade = open(
        &datapath,
        &Packet::syn(cast.outsider(), cast.vip()),
        backend,
    );
    let reply = Packet::syn_ack(backend, masquerade);
    returns(&datapath, &reply, cast.outsider(), cast.vip());
}

/// An address with the same bit in the prefilter.
fn look_alike(ip: std::net::IpAddr) -> SocketAddr {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    let found: Option<IpAddr> = match ip {
        IpAddr::V4(ip) => {
            let bit = frontend_bit(&AddrV4::from(ip));
            (0..u32::MAX / 256)
                .map(|number| Ipv4Addr::from(0x0b00_0000 + number))
                .find(|other| frontend_bit(&AddrV4::from(*other)) == bit)
                .map(Into::into)
        }
        IpAddr::V6(ip) => {
            let bit = frontend_bit(&AddrV6::from(ip));
            (0..1 << 24)
                .map(|number| Ipv6Addr::from((0xfd0b_u128 << 112) + number))
                .find(|other| frontend_bit(&AddrV6::from(*other)) == bit)
                .map(Into::into)
        }
    };
    SocketAddr::new(found.expect("one in a million addresses"), 80)
}

/// The client talks to the backend itself from a port that also has a masqueraded
/// flow to it. For the backend these are two, and both go on (E13).
#[rstest]
fn a_direct_connection_from_the_same_port_goes_on_beside(
    #[values(Family::V4, Family::V6)] family: Family,
    #[values(true, false)] tcp: bool,
    #[values(true, false)] closed: bool,
) {
    let cast = Cast::of(family);
    let mut datapath = Datapath::load();
    let (client, backend) = (cast.outsider(), cast.endpoint(1));
    datapath.serve(&ServicePort::tcp(cast.vip(), &[backend]));
    datapath.serve(&ServicePort::udp(cast.vip(), &[backend]));
    let [open_with, accept_with, data]: [fn(_, _) -> Packet; 3] = if tcp {
        [Packet::syn, Packet::syn_ack, Packet::data]
    } else {
        [Packet::udp; 3]
    };
    let masquerade = open(&datapath, &open_with(client, cast.vip()), backend);
    returns(
        &datapath,
        &accept_with(backend, masquerade),
        client,
        cast.vip(),
    );
    if tcp {
        assert_eq!(
            open(&datapath, &Packet::data(client, cast.vip()), backend),
            masquerade
        );
    }
    if tcp && closed {
        open(&datapath, &Packet::fin(client, cast.vip()), backend);
        returns(
            &datapath,
            &Packet::fin(backend, masquerade),
            client,
            cast.vip(),
        );
    }
    for (there, back) in [(open_with, accept_with), (data, data)] {
        for (src, dst, packet) in [(client, backend, there), (backend, client, back)] {
            let packet = packet(src, dst);
            for hook in [Hook::Ingress, Hook::Egress] {
                datapath.run(hook, &packet).left_alone(&packet.bytes());
            }
        }
    }
    // What the Service's backend sends meanwhile, and what follows it.
    let reply = data(backend, masquerade);
    let between = datapath.flows_of(client)[0].between;
    datapath
        .run(Hook::Ingress, &reply)
        .passed_as(&reply.clone().to(between));
    datapath
        .run(Hook::Egress, &reply.clone().to(between))
        .passed_as(&reply.to(client).from(cast.vip()));
    let request = data(client, cast.vip());
    let led = request.clone().to(backend).from(between);
    datapath.run(Hook::Ingress, &request).passed_as(&led);
    datapath
        .run(Hook::Egress, &led)
        .passed_as(&led.from(masquerade));
}
