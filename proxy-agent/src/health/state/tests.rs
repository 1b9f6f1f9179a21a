use super::*;

const V4: IpFamily = IpFamily::V4;
const V6: IpFamily = IpFamily::V6;

/// A step of a story, and the families that are well after it.
enum Step {
    /// A family has nothing left to do.
    Updated(IpFamily),
    Queued(IpFamily),
    /// Seconds pass.
    Pass(u64),
    /// These families are late now, and no others.
    Late(&'static [IpFamily]),
}
use Step::{Late, Pass, Queued, Updated};

/// A state in which Services work.
fn working(start: Instant) -> State {
    let mut state = State::default();
    state.start([V4, V6].into_iter(), start);
    state.attach();
    state.sync(V4, start);
    state.sync(V6, start);
    state
}

/// The cases of kube-proxy's own test of its health server, with its minute: a family
/// is late once its first unserved change has waited for so long, and only its own
/// update ends that (S106).
#[test]
fn kube_proxys_cases() {
    let story = [
        Late(&[]),
        Updated(V4),
        Updated(V6),
        Late(&[]),
        // Idle for ever is healthy.
        Pass(1000),
        Late(&[]),
        Queued(V4),
        Pass(61),
        Late(&[V4]),
        Updated(V4),
        Updated(V6),
        Pass(5),
        Late(&[]),
        Queued(V6),
        Pass(61),
        Late(&[V6]),
        Updated(V4),
        Updated(V6),
        Pass(5),
        Late(&[]),
        Queued(V4),
        Queued(V6),
        Pass(61),
        Late(&[V4, V6]),
        Updated(V4),
        Updated(V6),
        Late(&[]),
        // One family's update is none of the other's.
        Queued(V6),
        Pass(61),
        Updated(V4),
        Late(&[V6]),
        Updated(V6),
        Late(&[]),
        Queued(V4),
        Queued(V6),
        Pass(61),
        Updated(V4),
        Late(&[V6]),
        Updated(V6),
        Late(&[]),
        // The first change counts, not the last.
        Queued(V4),
        Pass(50),
        Queued(V4),
        Pass(9),
        Late(&[]),
        Pass(1),
        Late(&[V4]),
    ];
    let mut now = Instant::now();
    let mut state = working(now);
    for (number, step) in story.into_iter().enumerate() {
        match step {
            Updated(family) => state.sync(family, now),
            Queued(family) => state.queue(family, now),
            Pass(seconds) => now += Duration::from_secs(seconds),
            Late(late) => {
                let report = state.report(now, SystemTime::now());
                let unwell = report
                    .families
                    .iter()
                    .filter(|(_, family)| !family.is_healthy);
                let unwell: Vec<_> = unwell.map(|(family, _)| *family).collect();
                assert_eq!(unwell, late, "step {number}");
                assert_eq!(report.is_live, late.is_empty(), "step {number}");
                assert_eq!(report.is_healthy(), late.is_empty(), "step {number}");
                assert_eq!(report.reasons.len(), late.len(), "step {number}");
            }
        }
    }
}

/// The time that a family last had nothing left to do is by the clock.
#[test]
fn updates_have_times_by_the_clock() {
    let start = Instant::now();
    let mut state = working(start);
    let later = start + Duration::from_secs(100);
    state.sync(V6, start + Duration::from_secs(40));
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let report = state.report(later, wall);
    let ago = |seconds| wall - Duration::from_secs(seconds);
    assert_eq!(report.families[&V4].last_updated, ago(100));
    assert_eq!(report.families[&V6].last_updated, ago(60));
    assert_eq!(report.last_updated, Some(ago(60)));
}

/// A new node takes no clients before Services work there; one with what an earlier agent
/// left goes on. kube-proxy's rule alone would let both.
#[test]
fn the_first_sync_is_waited_for_on_a_new_node() {
    let now = Instant::now();
    let report = |state: &State| state.report(now, SystemTime::now());
    let mut state = State::default();
    state.start([V4, V6].into_iter(), now);
    assert!(report(&state).is_live && !report(&state).is_healthy());
    let reasons = [
        "IPv4: the first sync is missing",
        "IPv6: the first sync is missing",
        "the programs are not on the devices yet",
    ];
    assert_eq!(report(&state).reasons, reasons);
    assert_eq!(state.is_unready(), reasons);

    state.adopt();
    assert!(report(&state).is_healthy());
    let still = "IPv4: the first sync is missing, what an earlier agent left stays in force";
    assert_eq!(report(&state).reasons[0], still);
    assert_eq!(state.is_unready().len(), 3, "not ready all the same");

    state.sync(V4, now);
    state.sync(V6, now);
    state.attach();
    assert_eq!(report(&state).reasons, [""; 0]);
    assert_eq!(state.is_unready(), [""; 0]);
}

/// What is wrong is said; only what keeps this node from serving fails it.
#[test]
fn conditions_are_reasons() {
    let now = Instant::now();
    let mut state = working(now);
    let condition = |text: &str, fails| {
        let text = text.to_owned();
        Some(Condition { text, fails })
    };
    state.tell(Subject::Pins, condition("pins", false));
    state.tell(Subject::Tables(V6), condition("full", false));
    let report = state.report(now, SystemTime::now());
    assert!(report.is_healthy());
    assert_eq!(report.reasons, ["pins", "full"]);
    state.tell(Subject::Devices, condition("no uplink", true));
    let report = state.report(now, SystemTime::now());
    assert!(report.is_live && !report.is_healthy());
    assert_eq!(state.is_unready(), ["no uplink"]);
    for subject in [Subject::Pins, Subject::Tables(V6), Subject::Devices] {
        state.tell(subject, None);
    }
    assert_eq!(state.report(now, SystemTime::now()).reasons, [""; 0]);
}

/// The loop counts as dead after a minute; before it started it does not.
#[test]
fn a_loop_is_dead_after_a_minute() {
    let start = Instant::now();
    let later = |seconds| start + Duration::from_secs(seconds);
    let mut state = State::default();
    assert_eq!(state.dead_for(later(1000)), None);
    state.start([V4, V6].into_iter(), start);
    assert_eq!(state.dead_for(later(59)), None);
    assert_eq!(state.dead_for(later(60)), Some(Duration::from_mins(1)));
    state.turn(later(60));
    assert_eq!(state.dead_for(later(119)), None);
}
