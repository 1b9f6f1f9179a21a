//! The measured time from changes until they are in force.

use super::*;

/// A version of the slice of `a` that reflects a change of that time.
fn triggered(last_octet: u8, time: SystemTime) -> Change {
    let mut slice = slice("a", last_octet);
    slice.triggered = Some(time);
    Update::Apply(slice).into()
}

/// S28: for each change of a slice since the agent began, when its family is
/// written.
#[tokio::test(start_paused = true)]
async fn latencies_are_those_of_changes_since_the_start() {
    let mut rig = Rig::new(
        Intervals::default(),
        Outcomes::default(),
        Outcomes::default(),
    );
    rig.send(lists(&["a"])).await;
    rig.run_for(Duration::from_mins(1)).await;
    assert_eq!(rig.measured(), [0, 0]);
    let now = SystemTime::now;
    let gone = || Update::<EndpointSlice>::Delete(ObjectKey::new("default", "a-1")).into();
    let steps: [(&str, Batch, u64); 5] = [
        ("before", vec![triggered(1, SystemTime::UNIX_EPOCH)], 0),
        ("change", vec![triggered(2, now())], 1),
        ("no change", vec![triggered(2, now())], 0),
        ("two", vec![triggered(3, now()), triggered(4, now())], 2),
        ("removed", vec![triggered(5, now()), gone()], 1),
    ];
    let mut measured = 0;
    for (step, batch, count) in steps {
        rig.send(batch).await;
        rig.run_for(Duration::from_mins(1)).await;
        measured += count;
        assert_eq!(rig.measured(), [measured, 0], "{step}");
    }
}

/// S28: a failed sync ends the measurement; what comes later is measured.
#[tokio::test(start_paused = true)]
async fn latencies_are_not_those_of_failures() {
    let failing = Outcomes::fail([1]);
    let mut rig = Rig::new(Intervals::default(), failing, Outcomes::default());
    rig.send(lists(&["a"])).await;
    rig.run_for(Duration::from_mins(1)).await;
    for (last_octet, measured) in [(1, 0), (2, 1)] {
        rig.send(vec![triggered(last_octet, SystemTime::now())])
            .await;
        rig.run_for(Duration::from_mins(1)).await;
        assert_eq!(rig.measured(), [measured, 0]);
    }
}

/// A slice of a Service that is not there, such as one of another proxy's: no
/// sync brings its changes, so none is measured.
#[tokio::test(start_paused = true)]
async fn latencies_are_not_those_of_other_services() {
    let mut rig = Rig::new(
        Intervals::default(),
        Outcomes::default(),
        Outcomes::default(),
    );
    rig.send(lists(&["b"])).await;
    rig.run_for(Duration::from_mins(1)).await;
    rig.send(vec![triggered(1, SystemTime::now())]).await;
    rig.run_for(Duration::from_mins(1)).await;
    rig.send(vec![Update::Apply(slice("b", 1)).into()]).await;
    rig.run_for(Duration::from_mins(1)).await;
    assert_eq!(rig.measured(), [0, 0]);
}
