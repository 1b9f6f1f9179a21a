//! Clients that are not in the cluster.

use std::{
    fmt::Write as _,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    objects,
    scene::{Client, Scene, client_of, of_family, same, url},
};
use crate::{
    cluster::{
        addresses,
        place::{OUTSIDE, SWITCH, node_name},
        spec::{Cni, Family},
    },
    exec,
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

pub(super) fn clients_that_route_the_service_range_to_a_node_are_served(
    scene: &Scene<'_>,
) -> Result<()> {
    scene.apply_ready(&[objects::servers("echo")])?;
    let more = json!({"ipFamilyPolicy": "RequireDualStack"});
    scene.apply(&[objects::service("echo", "ClusterIP", &more)])?;
    let route = |verb: &str| {
        BOTH.into_iter().try_for_each(|family| {
            let (range, node) = (addresses::services(family), addresses::node(family, 1));
            let route = format!("ip route {verb} {range} via {node}");
            exec::output(scene.place.at(SWITCH, "bash").args(["-c", &route])).map(drop)
        })
    };
    route("replace")?;
    let result = scene.cluster_ips("echo").and_then(|addresses| {
        addresses.into_iter().try_for_each(|address| {
            scene.ask(Client::Outside, &url(address, 80, "hostname"))?;
            udp(scene, Client::Outside, address)
        })
    });
    route("delete")?;
    result
}

/// Asks a Service over UDP.
fn udp(scene: &Scene<'_>, client: Client<'_>, address: std::net::IpAddr) -> Result<()> {
    let script = format!("echo hostname | nc -u -w 1 {address} 80 | grep .");
    scene.eventually(&format!("{client:?} to {address} over UDP"), |scene| {
        scene.shell(client, &script)
    })?;
    Ok(())
}

pub(super) fn load_balancers_follow_local_endpoints(scene: &Scene<'_>) -> Result<()> {
    let more = json!({"ipFamilyPolicy": "RequireDualStack", "externalTrafficPolicy": "Local"});
    scene.apply(&[objects::service("echo", "LoadBalancer", &more)])?;
    let addresses = scene.load_balancer("echo")?;
    for node in [1, 2] {
        scene.apply_ready(&[objects::server("echo", node)])?;
        for address in &addresses {
            let url = url(*address, 80, "clientip");
            let client = client_of(&scene.ask(Client::Outside, &url)?)?;
            same(
                "the client",
                &client,
                &addresses::outside(Family::of(*address)),
            )?;
            udp(scene, Client::Outside, *address)?;
        }
        scene.kubectl(&["delete", "pod/echo"])?;
    }
    Ok(())
}

/// A tunnel of a client outside to the first node, which takes the packets for
/// others, too.
struct Vpn {
    ends: Vec<Child>,
}

const VPN: &str = "vpn0";

/// The addresses of the node and of the client in the tunnel.
const fn tunnel(family: Family) -> (&'static str, &'static str, &'static str) {
    match family {
        Family::V4 => ("10.8.0.1", "10.8.0.2", "10.8.0.0/24"),
        Family::V6 => ("fd00:8::1", "fd00:8::2", "fd00:8::/64"),
    }
}

impl Vpn {
    fn open(scene: &Scene<'_>) -> Result<Self> {
        let device = format!("TUN,tun-type=tun,tun-name={VPN},iff-no-pi,iff-up");
        let node = addresses::node(Family::V4, 1);
        let socat = |host: &str, peer: String| {
            let mut socat = scene.place.at(host, "socat");
            socat.args([&peer, &device]);
            start(socat)
        };
        let vpn = Self {
            ends: vec![
                socat(&node_name(1), "UDP-LISTEN:1194,reuseaddr".to_owned())?,
                socat(OUTSIDE, format!("UDP:{node}:1194"))?,
            ],
        };
        let (mut client, mut server) = (String::new(), String::new());
        for family in BOTH {
            let (own, peer, range) = tunnel(family);
            let length = range.rsplit('/').next().unwrap_or_default();
            let at_once = if family == Family::V4 { "" } else { "nodad" };
            let add = |address| format!("ip address add {address}/{length} dev {VPN} {at_once}\n");
            client += &add(peer);
            server += &add(own);
            for range in [
                addresses::services(family),
                addresses::all_pods(family, Cni::Ptp),
            ] {
                let _ = writeln!(client, "ip route add {range} via {own}");
            }
        }
        // The node's end is there when the first packet has come.
        let greet = format!("ping -c 1 -W 1 -I {VPN} 10.8.0.1 || true");
        in_host(scene, OUTSIDE, &client)?;
        scene.eventually("the tunnel", |scene| {
            in_host(scene, OUTSIDE, &greet)?;
            in_host(scene, &node_name(1), &format!("ip link show {VPN}"))
        })?;
        in_host(scene, &node_name(1), &server)?;
        for family in BOTH {
            let (_, _, range) = tunnel(family);
            let node = addresses::node(family, 1);
            in_host(
                scene,
                SWITCH,
                &format!("ip route replace {range} via {node}"),
            )?;
        }
        Ok(vpn)
    }
}

impl Drop for Vpn {
    fn drop(&mut self) {
        for end in &mut self.ends {
            let _ = end.kill();
            let _ = end.wait();
        }
    }
}

fn start(mut command: Command) -> Result<Child> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("start a program")
}

fn in_host(scene: &Scene<'_>, host: &str, script: &str) -> Result<()> {
    let mut bash = scene.place.at(host, "bash");
    exec::output(bash.args(["-e", "-c", script])).map(drop)
}

pub(super) fn vpn_clients_reach_pods_and_services(scene: &Scene<'_>) -> Result<()> {
    scene.apply_ready(&[objects::servers("echo"), objects::server("far", 2)])?;
    let more = json!({"ipFamilyPolicy": "RequireDualStack"});
    scene.apply(&[objects::service("echo", "ClusterIP", &more)])?;
    let _vpn = Vpn::open(scene)?;
    for family in BOTH {
        let (_, client, _) = tunnel(family);
        let pod = scene.pod_ip("far", family)?;
        let direct = scene.ask(Client::Outside, &url(pod, objects::PORT, "clientip"))?;
        same("the client", &client_of(&direct)?, &client.parse()?)?;
        let cluster_ip = of_family(&scene.cluster_ips("echo")?, family)?;
        let mut answered = std::collections::BTreeSet::new();
        scene.eventually("endpoints of both nodes", |scene| {
            let url = url(cluster_ip, 80, "hostname");
            answered.insert(scene.ask(Client::Outside, &url)?);
            ensure!(answered.len() == 2, "these answered: {answered:?}");
            Ok(())
        })?;
        udp(scene, Client::Outside, cluster_ip)?;
    }
    Ok(())
}
