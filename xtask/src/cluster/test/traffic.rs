//! What else is at work in a cluster: an ingress, the cluster's DNS, and the rules of
//! network plugins.

use std::{
    net::IpAddr,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    objects,
    scene::{Client, Scene, client_of, of_family, same, url},
};
use crate::cluster::{
    addresses,
    images::NGINX,
    place::OUTSIDE,
    spec::{Cni, Family},
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

pub(super) fn nginx_and_cluster_dns_answer_clients_of_either_family(
    scene: &Scene<'_>,
) -> Result<()> {
    let local = json!({"ipFamilyPolicy": "RequireDualStack", "externalTrafficPolicy": "Local"});
    let mut ingress = objects::service("nginx", "LoadBalancer", &local);
    ingress["spec"]["ports"] = json!([{"port": 80, "targetPort": 80}]);
    let both = json!({"ipFamilyPolicy": "RequireDualStack"});
    scene.apply(&[ingress, objects::service("echo", "ClusterIP", &both)])?;
    scene.apply_ready(&[objects::deployment("echo", 2)])?;
    let mut objects = nginx(&scene.namespace);
    scene.apply_ready(&objects.split_off(0))?;

    for address in scene.load_balancer("nginx")? {
        let family = Family::of(address);
        let script = format!(
            "curl --silent --fail --max-time 3 --dump-header - {}",
            url(address, 80, "hostname")
        );
        let answer = scene.eventually(&format!("NGINX at {address}"), |scene| {
            scene.shell(Client::Outside, &script)
        })?;
        let header = |line: &str| Some(line.strip_prefix("X-Client: ")?.trim().to_owned());
        let client = answer
            .lines()
            .find_map(header)
            .context("NGINX named no client")?;
        same(
            "the client",
            &client,
            &addresses::outside(family).to_string(),
        )?;
    }
    let result = BOTH.into_iter().try_for_each(|family| {
        let families = format!("ipv{}", family.digit());
        let client = objects::client("client", 2);
        let client = objects::resolving_in(family, &scene.namespace, client);
        scene.with_pods_of(2, &families, &client, |scene| {
            scene.ask(Client::Pod("client"), "http://echo/hostname")?;
            scene.ask(Client::Pod("client"), "http://nginx/hostname")?;
            let answer = scene.ask(Client::Pod("client"), "http://echo/clientip")?;
            same(
                "the client",
                &client_of(&answer)?,
                &scene.pod_ip("client", family)?,
            )
        })
    });
    scene.limit_pods(2, "ipv4,ipv6")?;
    result
}

/// NGINX, which asks the Service `echo` by its name.
fn nginx(namespace: &str) -> Vec<Value> {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path /tmp/{name};\n"))
        .concat();
    let config = format!(
        "user root;\npid /tmp/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n\
         access_log off;\n{temporary}\
         server {{\n listen 80;\n listen [::]:80;\n add_header X-Client $remote_addr;\n\
         location = /ready {{ return 200; }}\n\
         location / {{ proxy_pass http://echo.{namespace}.svc.cluster.local; }}\n}}\n}}\n"
    );
    let mut deployment = objects::deployment("nginx", 2);
    let pod = &mut deployment["spec"]["template"]["spec"];
    pod["containers"] = json!([{
        "name": "nginx",
        "image": NGINX,
        "volumeMounts": [{"name": "config", "mountPath": "/etc/nginx"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 80}, "periodSeconds": 1},
    }]);
    pod["volumes"] = json!([{"name": "config", "configMap": {"name": "nginx"}}]);
    let config = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "nginx"},
        "data": {"nginx.conf": config},
    });
    vec![config, deployment]
}

/// A server outside, until it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve_outside(scene: &Scene<'_>) -> Result<Server> {
    let agnhost = scene.kubectl.sibling("agnhost");
    let mut server = scene.place.at(OUTSIDE, agnhost);
    server
        .args(["netexec", "--http-port=8080", "--udp-port=8080"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(Server(server.spawn().context("start a server outside")?))
}

/// The rules of ip-masq-agent: what pods say to others than pods and nodes has the
/// address of the node.
fn masquerade(family: Family) -> String {
    let program = if family == Family::V4 {
        "iptables"
    } else {
        "ip6tables"
    };
    let ranges = [
        addresses::all_pods(family, Cni::Ptp),
        addresses::underlay(family),
    ];
    let exceptions = ranges
        .map(|range| format!("{program} -w -t nat -A IP-MASQ-AGENT -d {range} -j RETURN\n"))
        .concat();
    format!(
        "{program} -w -t nat -N IP-MASQ-AGENT\n{exceptions}\
         {program} -w -t nat -A IP-MASQ-AGENT -j MASQUERADE --random-fully\n\
         {program} -w -t nat -A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT\n"
    )
}

fn unmasquerade(family: Family) -> String {
    let program = if family == Family::V4 {
        "iptables"
    } else {
        "ip6tables"
    };
    format!(
        "{program} -w -t nat -D POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT\n\
         {program} -w -t nat -F IP-MASQ-AGENT\n{program} -w -t nat -X IP-MASQ-AGENT\n"
    )
}

pub(super) fn masquerading_by_the_network_plugin_stays(scene: &Scene<'_>) -> Result<()> {
    let both = json!({"ipFamilyPolicy": "RequireDualStack"});
    let local = json!({"ipFamilyPolicy": "RequireDualStack", "externalTrafficPolicy": "Local"});
    scene.apply(&[
        objects::service("cluster", "LoadBalancer", &both),
        objects::service("local", "LoadBalancer", &local),
    ])?;
    scene.apply_ready(&[
        objects::server("cluster", 2),
        objects::server("local", 2),
        objects::client("client", 1),
    ])?;
    let _server = serve_outside(scene)?;
    let on_nodes = |script: fn(Family) -> String| {
        [1, 2].into_iter().try_for_each(|node| {
            BOTH.into_iter().try_for_each(|family| {
                scene
                    .in_node(node, &format!("set -e\n{}", script(family)))
                    .map(drop)
            })
        })
    };
    on_nodes(masquerade)?;
    let result = BOTH
        .into_iter()
        .try_for_each(|family| way_out_and_in(scene, family));
    on_nodes(unmasquerade)?;
    result
}

fn way_out_and_in(scene: &Scene<'_>, family: Family) -> Result<()> {
    let pod = Client::Pod("client");
    let (own, node) = (scene.pod_ip("client", family)?, addresses::node(family, 1));
    let outside = addresses::outside(family);
    let sees = |what: &str, client, url: &str, wanted: IpAddr| {
        let answer = scene.ask(client, url)?;
        same(
            &format!("the client that {what} sees"),
            &client_of(&answer)?,
            &wanted,
        )
    };
    // What a pod asks outside, itself and by a Service.
    sees(
        "a server outside",
        pod,
        &url(outside, objects::PORT, "clientip"),
        node,
    )?;
    let name = format!("outside{}", family.digit());
    let mut service = objects::service(
        &name,
        "ClusterIP",
        &json!({
            "ipFamilies": [format!("IPv{}", family.digit())],
        }),
    );
    service["spec"]["selector"] = Value::Null;
    scene.apply(&[service, slice(&name, outside)])?;
    let cluster_ip = of_family(&scene.cluster_ips(&name)?, family)?;
    sees(
        "a Service's server outside",
        pod,
        &url(cluster_ip, 80, "clientip"),
        node,
    )?;
    // What stays in the cluster.
    let cluster_ip = of_family(&scene.cluster_ips("cluster")?, family)?;
    sees("a pod", pod, &url(cluster_ip, 80, "clientip"), own)?;
    // What comes from outside.
    let local = of_family(&scene.load_balancer("local")?, family)?;
    sees(
        "a local pod",
        Client::Outside,
        &url(local, 80, "clientip"),
        outside,
    )?;
    let port = scene.node_port("cluster")?;
    let by_another = url(node, port, "clientip");
    sees("a pod of another node", Client::Outside, &by_another, node)
}

/// An endpoint that is no pod.
fn slice(service: &str, address: IpAddr) -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "port": objects::PORT, "protocol": protocol});
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
        "addressType": format!("IPv{}", Family::of(address).digit()),
        "endpoints": [{"addresses": [address]}],
        "ports": [port("http", "TCP"), port("udp", "UDP")],
    })
}

pub(super) fn host_ports_of_portmap_stay(scene: &Scene<'_>) -> Result<()> {
    const HOST_PORT: u16 = 8099;
    let both = json!({"ipFamilyPolicy": "RequireDualStack"});
    let mut pod = objects::server("echo", 1);
    pod["spec"]["containers"][0]["ports"] =
        json!([{"containerPort": objects::PORT, "hostPort": HOST_PORT}]);
    scene.apply(&[objects::service("echo", "NodePort", &both)])?;
    scene.apply_ready(&[pod, objects::client("client", 2)])?;
    let node_port = scene.node_port("echo")?;
    for family in BOTH {
        let node = addresses::node(family, 1);
        for client in [Client::Outside, Client::Pod("client")] {
            for port in [HOST_PORT, node_port] {
                let answer = scene.ask(client, &url(node, port, "hostname"))?;
                same("the pod", &answer.trim(), &"echo")?;
            }
        }
        // The NodePort of a node that has no such pod.
        let other = url(addresses::node(family, 2), node_port, "hostname");
        scene.ask(Client::Outside, &other)?;
        let answer = scene.ask(Client::Outside, &url(node, HOST_PORT, "clientip"))?;
        same(
            "the client",
            &client_of(&answer)?,
            &addresses::outside(family),
        )?;
    }
    Ok(())
}
