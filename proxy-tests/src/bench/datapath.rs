//! Kernel time per packet, above an empty program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};
use proxy_agent::dataplane::load::Sizes;

use super::{
    machine,
    measure::{repeated, single},
    table::Table,
};
use crate::{
    Family,
    packet::{Cast, Datapath, Hook, Packet, ServicePort},
};

/// Numbers of Services that must make no difference.
const SCALES: [u32; 3] = [1, 1000, 100_000];
/// Flows in the table in the rows of many flows.
const FLOWS: u32 = 65_536;

/// The measurements, in the order of the table's rows, with the goal in IPv4
/// and IPv6, in ns.
const ROWS: [(&str, Option<(f64, f64)>); 11] = [
    ("hot: not ours, in", Some((15.0, 15.0))),
    ("hot: not ours, out", Some((15.0, 15.0))),
    ("hot: not ours, UDP, in", Some((15.0, 15.0))),
    ("hot: not ours, UDP, out", Some((15.0, 15.0))),
    ("hot: established, in", Some((75.0, 90.0))),
    ("hot: established, out", Some((75.0, 90.0))),
    ("single: not ours, in", None),
    ("single: established, in, one flow", None),
    ("single: established, out, one flow", None),
    ("single: established, in, 65,536 flows", None),
    ("single: new flow", None),
];

/// Measures everything and prints it.
pub fn run() -> Result<()> {
    println!("Kernel time per packet in ns above an empty program.");
    println!(
        "{}. Figures of one machine, and noisy:",
        machine::describe()
    );
    println!("compare those of one run. \"hot\": one packet over and over in a loop;");
    println!("the backend has the frontend's address and port, so that the packet");
    println!("stays as it is, and the checksum call for a changed port is left out.");
    println!("\"single\": one system call a packet, timed by the kernel's statistics,");
    println!("with a changed address and port.");
    println!();
    let mut columns = Vec::new();
    for scale in SCALES {
        let mut datapath = load(scale);
        for family in Family::BOTH {
            columns.push((family, scale, measure(&mut datapath, family, scale)?));
        }
    }
    columns.sort_by_key(|(family, ..)| *family);
    print(&columns);
    Ok(())
}

/// One column of the table.
type Column = (Family, u32, Vec<f64>);

fn print(columns: &[Column]) {
    let titles: Vec<_> = columns
        .iter()
        .map(|(family, scale, _)| format!("{family} {scale}"))
        .collect();
    let mut head = vec!["Services:"];
    head.extend(titles.iter().map(String::as_str));
    head.extend(["goal IPv4", "goal IPv6"]);
    let mut table = Table::new(&head);
    for (index, (name, goal)) in ROWS.iter().enumerate() {
        let mut row = vec![(*name).to_owned()];
        row.extend(
            columns
                .iter()
                .map(|(.., figures)| format!("{:.1}", figures[index])),
        );
        if let Some((v4, v6)) = goal {
            row.extend([format!("≤ {v4:.0}"), format!("≤ {v6:.0}")]);
        }
        table.row(row);
    }
    table.print();
}

/// A datapath with so many Services of each family, and those measured.
fn load(scale: u32) -> Datapath {
    let mut datapath = Datapath::with_sizes(Sizes {
        services: scale + 16,
        endpoints: scale + 16,
        flows: FLOWS * 2,
        ..Sizes::DEFAULT
    });
    for program in ["empty", "ingress_repeated"] {
        datapath.load_program(program);
    }
    let mut ports = Vec::new();
    for family in Family::BOTH {
        let cast = Cast::of(family);
        // The last ones, so that they are found among all others.
        ports
            .extend((1..scale).map(|n| {
                ServicePort::tcp(numbered(family, 0x60, n), &[numbered(family, 0xc0, n)])
            }));
        ports.push(ServicePort::tcp(cast.vip(), &[cast.endpoint(1)]));
        ports.push(ServicePort::tcp(same(cast), &[same(cast)]));
    }
    datapath.serve_all(&ports);
    datapath
}

/// The frontend whose backend has its address and port.
fn same(cast: Cast) -> SocketAddr {
    cast.vip_with(20, 80)
}

/// Address number `n` of a range.
fn numbered(family: Family, range: u8, n: u32) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::from((u32::from(range) << 24) + n).into(),
        Family::V6 => {
            Ipv6Addr::from((0xfd_u128 << 120) + (u128::from(range) << 96) + u128::from(n)).into()
        }
    };
    SocketAddr::new(ip, 80)
}

/// All figures of a column.
fn measure(datapath: &mut Datapath, family: Family, scale: u32) -> Result<Vec<f64>> {
    let cast = Cast::of(family);
    let (vip, backend, same) = (cast.vip(), cast.endpoint(1), same(cast));
    eprintln!("{family}, {scale} Services …");

    let other = Packet::data(cast.pod(), cast.stranger()).bytes();
    let datagram = Packet::udp(cast.pod(), cast.stranger()).bytes();
    let hot_in = Packet::data(cast.pod_with(2, 5000), same).bytes();
    let hot_out = Packet::data(same, cast.pod_with(2, 5000)).bytes();
    let one_in = Packet::data(cast.pod(), vip).bytes();
    let one_out = Packet::data(backend, cast.pod()).bytes();
    for packet in [&hot_in, &one_in] {
        datapath.run_uncounted(Hook::Ingress, packet);
    }
    let empty = repeated(datapath, "empty", &other)?;
    let hot = |program, packet: &[u8]| {
        Ok::<_, anyhow::Error>(repeated(datapath, program, packet)? - empty)
    };
    let mut figures = vec![
        hot("ingress_repeated", &other)?,
        hot("egress", &other)?,
        hot("ingress_repeated", &datagram)?,
        hot("egress", &datagram)?,
        hot("ingress_repeated", &hot_in)?,
        hot("egress", &hot_out)?,
    ];

    let many = |packet: &Vec<u8>| vec![packet.clone(); 20_000];
    let empty = single(datapath, "empty", &many(&other), 5)?;
    let once = |program, packets: &[Vec<u8>], rounds| {
        Ok::<_, anyhow::Error>(single(datapath, program, packets, rounds)? - empty)
    };
    figures.push(once("ingress", &many(&other), 5)?);
    figures.push(once("ingress", &many(&one_in), 5)?);
    figures.push(once("egress", &many(&one_out), 5)?);
    let flows: Vec<_> = (0..FLOWS)
        .map(|n| Packet::data(client(cast, n), vip).bytes())
        .collect();
    let new = once("ingress", &flows, 1)?;
    ensure!(
        datapath.flows(family).len() >= FLOWS as usize,
        "not every packet opened a flow"
    );
    figures.push(once("ingress", &flows, 3)?);
    figures.push(new);
    datapath.forget_flows();
    Ok(figures)
}

/// Client number `n`, in an order that the caches cannot guess.
fn client(cast: Cast, n: u32) -> SocketAddr {
    let n = n.wrapping_mul(40_503) % FLOWS;
    let index = u8::try_from(n >> 12).expect("below sixteen");
    let port = 1024 + u16::try_from(n & 0xfff).expect("below 4,096");
    cast.pod_with(100 + index, port)
}
