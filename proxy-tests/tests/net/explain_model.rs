//! `explain --manifests` says of every flow what a plain model says that knows
//! only the rules.

mod cluster;
mod flows;
mod model;

use std::{cell::RefCell, collections::BTreeSet, fs};

use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};
use proxy_agent::{
    cli::{Cli, Command},
    commands::explain::{decode::Explanation, engine::Engine, flow},
    config::NodeConfig,
    dataplane::load::Sizes,
    source::manifests,
};
use proxy_common::explain::Masquerade;
use proxy_tests::Family;

use self::{
    cluster::{Cluster, NODES},
    flows::Flow,
    model::Expected,
};

/// Enough for each of the clusters in turn.
const SIZES: Sizes = Sizes {
    services: 256,
    endpoints: 1024,
    flows: 64,
    ..Sizes::DEFAULT
};

#[test]
fn explanations_agree_with_the_rules() {
    let engine = RefCell::new(Engine::offline(SIZES).expect("tables"));
    let mut runner = TestRunner::new(Config {
        cases: 256,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&cluster::cluster(), |cluster| {
        let engine = &mut *engine.borrow_mut();
        fill(engine, &cluster);
        for flow in flows::flows(&cluster) {
            let asked = flow::Flow::new(
                format!("{}", std::net::SocketAddr::new(flow.from, flow.port))
                    .parse()
                    .expect("a client"),
                flow.to.to_string().parse().expect("a destination"),
                serde_json::from_value(flow.protocol.into()).expect("a protocol"),
                serde_json::from_value(flow.place.name().into()).expect("a place"),
            );
            let explanation = engine
                .explain(&asked.expect("one family"))
                .expect("an answer");
            let expected = model::expect(&cluster, &flow);
            prop_assert!(
                agree(&explanation, &expected),
                "{flow:?}\nis {explanation:#?}\nbut should be {expected:#?}"
            );
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// Makes the tables those of the cluster, by way of files as `--manifests`
/// reads them.
fn fill(engine: &mut Engine, cluster: &Cluster) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("cluster.json"), cluster.manifest()).expect("a file");
    let objects = manifests::read_once(folder.path()).expect("manifests");
    engine
        .fill(objects, &node(cluster), &[])
        .expect("tables with room");
}

/// The node, as its flags describe it.
fn node(cluster: &Cluster) -> NodeConfig {
    let cidrs: Vec<_> = cluster
        .detector
        .iter()
        .map(|family| match family {
            Family::V4 => "10.244.0.0/16",
            Family::V6 => "fd00:244::/32",
        })
        .collect();
    let flags = [
        "proxy-agent".to_owned(),
        "run".to_owned(),
        format!("--hostname-override={}", NODES[0]),
        format!("--cluster-cidr={}", cidrs.join(",")),
        format!("--masquerade-all={}", cluster.masquerade_all),
        format!("--nodeport-addresses={}", cluster.node_port_addresses),
    ];
    let parsed = proxy_agent::cli::parse(flags.map(Into::into)).expect("flags");
    match parsed {
        Cli {
            command: Command::Run(args),
            ..
        } => args.node.try_into().expect("a node"),
        other => panic!("{other:?}"),
    }
}

fn agree(explanation: &Explanation, expected: &Expected) -> bool {
    let endpoints: BTreeSet<_> = explanation.endpoints.iter().cloned().collect();
    let chosen = explanation.chosen.map(|chosen| chosen.to_string());
    let chosen_is_one = match &chosen {
        Some(chosen) => expected.endpoints.contains(chosen),
        None => expected.endpoints.is_empty(),
    };
    let masquerade = chosen.and_then(|chosen| expected.masquerade.get(&chosen).copied());
    explanation.verdict.name() == expected.verdict
        && explanation.service == expected.service
        && explanation.frontend == expected.frontend
        && endpoints == expected.endpoints
        && endpoints.len() == explanation.endpoints.len()
        && explanation.endpoints.is_sorted()
        && chosen_is_one
        && explanation.facts.masquerade == masquerade
        && explanation.masquerade == masquerade.is_some_and(Masquerade::hides_client)
}

/// The flows asked about are worth it.
#[test]
fn the_model_meets_every_verdict_and_reason() {
    let (mut verdicts, mut reasons) = (BTreeSet::new(), BTreeSet::new());
    let mut runner = TestRunner::deterministic();
    for _ in 0..100 {
        let cluster = cluster::cluster()
            .new_tree(&mut runner)
            .expect("a cluster")
            .current();
        for flow in flows::flows(&cluster) {
            let Expected {
                verdict,
                frontend,
                masquerade,
                ..
            } = model::expect(&cluster, &flow);
            let Flow { place, .. } = flow;
            verdicts.insert((verdict, frontend, place.name()));
            reasons.extend(masquerade.into_values().map(|reason| reason as u8));
        }
    }
    for kind in ["ClusterIP", "NodePort", "ExternalIP", "LoadBalancer"] {
        for verdict in ["forward", "reject", "drop"] {
            for place in ["pod", "node", "external"] {
                let met = verdicts.contains(&(verdict, Some(kind), place));
                // This node is exempt from the external policy, and no
                // source range restricts NodePorts and external IPs.
                let impossible = verdict == "drop"
                    && place == "node"
                    && ["NodePort", "ExternalIP"].contains(&kind);
                assert_ne!(met, impossible, "{verdict} of {kind} from {place}");
            }
        }
    }
    for reason in Masquerade::ALL {
        // Devices and routes, which there are none of.
        let impossible = matches!(
            reason,
            Masquerade::BackendIsNode
                | Masquerade::NoPrograms
                | Masquerade::NotPodDevice
                | Masquerade::NoRoute
        );
        assert_ne!(reasons.contains(&(reason as u8)), impossible, "{reason:?}");
    }
}
