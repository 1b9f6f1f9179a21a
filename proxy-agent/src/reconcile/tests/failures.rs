//! Syncs and audits that fail.

use super::*;

/// S87, P9: a failing family retries everything, later and later; the other
/// does not notice.
#[tokio::test(start_paused = true)]
async fn a_failed_sync_is_repeated_completely() {
    let mut rig = Rig::new(
        Intervals::default(),
        Outcomes::fail([1, 2, 3]),
        Outcomes::default(),
    );
    let (mut v4, mut v6) = (0, 0);
    rig.send(lists(&["a", "b"])).await;
    rig.settle().await;
    rig.send(vec![Update::Apply(slice("a", 1)).into()]).await;
    rig.run_for(Duration::from_secs(30)).await;

    let all = names(&["a", "b"]);
    assert_eq!(
        Rig::take(&rig.v4, &mut v4),
        [
            (0, all.clone(), true),
            (0, names(&["a"]), false),
            (1, all.clone(), true),
            (3, all.clone(), true),
            (7, all.clone(), true),
        ]
    );
    let expected = [(0, all, true), (0, names(&["a"]), false)];
    assert_eq!(Rig::take(&rig.v6, &mut v6), expected);

    // It has recovered: the next change is small again, and at once.
    rig.send(vec![Update::Apply(slice("b", 1)).into()]).await;
    rig.settle().await;
    let expected = [(30, names(&["b"]), false)];
    assert_eq!(Rig::take(&rig.v4, &mut v4), expected);
    assert_eq!(Rig::take(&rig.v6, &mut v6), expected);
}

/// A family whose every sync fails holds nobody up, and changes do not make
/// it try more often.
#[tokio::test(start_paused = true)]
async fn a_dead_family_does_not_delay_the_other() {
    let mut rig = Rig::new(
        Intervals::default(),
        Outcomes::fail(0..1000),
        Outcomes::default(),
    );
    rig.send(lists(&["a"])).await;
    rig.settle().await;
    for octet in 1..=100 {
        rig.send(vec![Update::Apply(slice("a", octet)).into()])
            .await;
        rig.run_for(Duration::from_millis(100)).await;
    }
    assert_eq!(rig.v6.borrow().len(), 101);
    assert_eq!(rig.v4.borrow().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_did_not_fit_is_tried_again() {
    let outcomes = Outcomes {
        retried: [1, 2].into(),
        ..Outcomes::default()
    };
    let mut rig = Rig::new(Intervals::default(), outcomes, Outcomes::default());
    let mut v4 = 0;
    rig.send(lists(&["a", "b"])).await;
    rig.settle().await;
    rig.send(vec![Update::Apply(slice("b", 1)).into()]).await;
    rig.run_for(Duration::from_hours(1)).await;
    assert_eq!(
        Rig::take(&rig.v4, &mut v4)[1..],
        [
            (0, names(&["b"]), false),
            (1, names(&["b"]), false),
            (3, names(&["b"]), false),
        ]
    );
    assert_eq!(rig.v6.borrow().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_audit_leads_to_a_complete_sync() {
    let outcomes = Outcomes {
        failing_audit: true,
        ..Outcomes::default()
    };
    let mut rig = Rig::new(Intervals::default(), outcomes, Outcomes::default());
    let mut v4 = 0;
    rig.send(lists(&["a"])).await;
    rig.run_for(Duration::from_mins(5)).await;
    let all = names(&["a"]);
    assert_eq!(
        Rig::take(&rig.v4, &mut v4),
        [(0, all.clone(), true), (61, all, true)]
    );
    assert_eq!(rig.v6.borrow().len(), 1);
}

/// P9: the counter goes up once for a problem, not at every event.
#[tokio::test(start_paused = true)]
async fn a_problem_is_counted_once() {
    let mut rig = Rig::new(
        Intervals::default(),
        Outcomes::default(),
        Outcomes::default(),
    );
    let mut bad = service("bad");
    let problem = ServiceProblem::PortNumber {
        name: "http".to_owned(),
        port: 0,
    };
    bad.problems.push(problem.into());
    for _ in 0..3 {
        rig.send(vec![Update::Apply(bad.clone()).into()]).await;
        rig.send(vec![
            Update::Relist(vec![bad.clone(), service("good")]).into(),
        ])
        .await;
    }
    rig.settle().await;
    assert_eq!(
        rig.metrics
            .object_problem_count(Kind::Service, "port_number"),
        1
    );

    rig.send(vec![Update::Relist(vec![service("good")]).into()])
        .await;
    rig.send(vec![Update::Apply(bad).into()]).await;
    rig.settle().await;
    assert_eq!(
        rig.metrics
            .object_problem_count(Kind::Service, "port_number"),
        2
    );
}

/// S106: what one family cannot program for a minute makes the node unhealthy,
/// until it can.
#[tokio::test(start_paused = true)]
async fn a_family_that_fails_for_long_is_unhealthy() {
    let failing = Outcomes::fail(1..7);
    let mut rig = Rig::new(Intervals::default(), Outcomes::default(), failing);
    rig.send(lists(&["a"])).await;
    rig.run_for(Duration::from_mins(10)).await;
    rig.health.attached();
    assert!(rig.health.is_healthy(), "nothing to do");
    rig.send(vec![Update::Apply(slice("a", 2)).into()]).await;
    rig.run_for(Duration::from_secs(59)).await;
    assert!(rig.health.is_healthy());
    rig.run_for(Duration::from_secs(1)).await;
    assert!(!rig.health.is_healthy());
    rig.run_for(Duration::from_secs(10)).await;
    assert!(rig.health.is_healthy(), "the seventh works");
}
