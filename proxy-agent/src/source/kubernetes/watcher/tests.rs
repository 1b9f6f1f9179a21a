//! Watches of an API server that is made of answers. Time is tokio's, and stands still
//! except when everything sleeps.

mod crowd;

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    pin::pin,
    rc::Rc,
};

use k8s_openapi::api::core::v1::Service;
use rstest::rstest;
use serde_json::json;
use tokio::time::sleep;

use super::*;
use crate::source::kubernetes::pacing::Chance;

/// What a server does with a request.
#[derive(Clone)]
enum Answer {
    Refuse(u16),
    Unreachable,
    /// Answers with a list, and a watch that ends after so many seconds.
    Watch(u64),
}

struct Script {
    start: Instant,
    answers: VecDeque<Answer>,
    /// The answer when there is no other.
    then: Answer,
    /// Seconds since the start, and the kind of request.
    asked: Rc<RefCell<Vec<(f64, &'static str)>>>,
}

impl Script {
    fn answer(&mut self, request: &'static str) -> kube::Result<u64> {
        let at = self.start.elapsed().as_secs_f64();
        self.asked.borrow_mut().push((at, request));
        match self
            .answers
            .pop_front()
            .unwrap_or_else(|| self.then.clone())
        {
            Answer::Refuse(code) => Err(kube::Error::Api(Box::new(
                Status::failure("no", "Because").with_code(code),
            ))),
            Answer::Unreachable => Err(kube::Error::Service("connection refused".into())),
            Answer::Watch(seconds) => Ok(seconds),
        }
    }
}

fn event(line: &serde_json::Value) -> WatchEvent<Service> {
    serde_json::from_value(line.clone()).expect("an event")
}

fn end_of_list() -> WatchEvent<Service> {
    let annotations = json!({INITIAL_EVENTS_END: "true"});
    let metadata = json!({"resourceVersion": "7", "annotations": annotations});
    let object = json!({"kind": "Service", "apiVersion": "v1", "metadata": metadata});
    event(&json!({"type": "BOOKMARK", "object": object}))
}

/// Says that nothing happens for so long, then ends.
fn silence(seconds: u64) -> Events<Service> {
    let silence = stream::once(sleep(Duration::from_secs(seconds)));
    silence.filter_map(|()| std::future::ready(None)).boxed()
}

impl Requests for Script {
    type Object = Service;

    async fn list(&mut self, _: &str) -> kube::Result<Listed<Service>> {
        self.answer("list")?;
        Ok(Listed {
            objects: Vec::new(),
            version: Some("7".to_owned()),
        })
    }

    async fn stream(&mut self, _: &str, _: u32) -> kube::Result<Events<Service>> {
        let seconds = self.answer("stream")?;
        let first = stream::iter([Ok(end_of_list())]);
        Ok(first.chain(silence(seconds)).boxed())
    }

    async fn watch(&mut self, _: &str, _: u32) -> kube::Result<Events<Service>> {
        self.answer("watch").map(silence)
    }

    async fn failed(&mut self, _: &Error) {}
}

/// What was asked within some seconds, and the news of it as text: `L` for a list, `!` for
/// an error, `*` for the end of errors.
async fn observe(
    answers: &[Answer],
    then: Answer,
    seconds: u64,
) -> (Vec<(f64, &'static str)>, String) {
    let asked = Rc::default();
    let script = Script {
        start: Instant::now(),
        answers: answers.iter().cloned().collect(),
        then,
        asked: Rc::clone(&asked),
    };
    let mut events = pin!(events(script, Pacing::new(Chance::seeded(1))));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut text = String::new();
    while let Ok(Some(news)) = timeout_at(end, events.next()).await {
        text.push_str(match news {
            Ok(Event::InitDone) => "L",
            Ok(Event::Recovered) => "*",
            Ok(_) => "",
            Err(_) => "!",
        });
    }
    let asked = asked.borrow().clone();
    (asked, text)
}

/// For ever, at the pace of one in half a minute. A list that cannot begin is one of them,
/// and an answer that is none.
#[rstest]
#[case::unreachable(Answer::Unreachable)]
#[case::too_many_requests(Answer::Refuse(429))]
#[case::forbidden(Answer::Refuse(403))]
#[case::unauthorized(Answer::Refuse(401))]
#[case::broken(Answer::Refuse(500))]
#[case::gone(Answer::Refuse(410))]
#[case::cut_at_once(Answer::Watch(0))]
#[case::cut_soon(Answer::Watch(2))]
#[tokio::test(start_paused = true)]
async fn attempts_become_rare_whatever_fails(#[case] answer: Answer) {
    let (asked, _) = observe(&[], answer, 3600).await;
    let gaps: Vec<_> = asked.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!((90..250).contains(&asked.len()), "{}", asked.len());
    assert!(
        gaps[0] < 4.0 && gaps[..5].iter().sum::<f64>() < 75.0,
        "{gaps:?}"
    );
    let late = &gaps[8..];
    assert!(
        late.iter().all(|gap| *gap >= 15.0 && *gap <= 48.0),
        "{late:?}"
    );
    let rounded: std::collections::BTreeSet<_> =
        late.iter().map(|gap| format!("{gap:.0}")).collect();
    assert!(rounded.len() > 15, "by chance: {rounded:?}");
}

/// A list that is refused as soon as it is watched: the API server has no history.
#[tokio::test(start_paused = true)]
async fn a_list_that_is_always_too_old_is_not_asked_for_all_the_time() {
    let cycle = [Answer::Watch(0), Answer::Refuse(410)];
    let answers: Vec<_> = cycle.into_iter().cycle().take(400).collect();
    let (asked, _) = observe(&answers, Answer::Watch(300), 1800).await;
    let lists = asked
        .iter()
        .filter(|(_, request)| *request == "stream")
        .count();
    assert!((20..60).contains(&lists), "{lists}");
}

/// After one long enough that works, all is as it was before.
#[tokio::test(start_paused = true)]
async fn the_first_delay_is_short_again_after_a_minute_that_went_well() {
    let mut answers = vec![Answer::Unreachable; 8];
    answers.extend([Answer::Watch(70), Answer::Unreachable]);
    let (asked, text) = observe(&answers, Answer::Watch(280), 400).await;
    assert_eq!(text, "!!!!!!!!L*!*");
    let after = asked[9].0;
    assert!(asked[10].0 - after < 4.0, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_flaps_has_not_recovered() {
    let (_, text) = observe(&[Answer::Unreachable], Answer::Watch(0), 300).await;
    assert!(text.starts_with("!L") && !text.contains('*'), "{text}");
}

/// The end of its time is no reason to wait, and none to list.
#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_in_time_is_resumed_at_once() {
    let (asked, text) = observe(&[], Answer::Watch(288), 1500).await;
    assert_eq!(text, "L");
    assert!(asked[1].0 - asked[0].0 <= 290.0, "{asked:?}");
    assert_eq!(
        asked
            .iter()
            .filter(|(_, request)| *request != "watch")
            .count(),
        1
    );
}

/// As `ServiceCIDRs` are in API servers before 1.33.
#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_there_is_asked_for_every_ten_minutes() {
    let (asked, _) = observe(&[], Answer::Refuse(404), 24 * 3600).await;
    assert!((100..320).contains(&asked.len()), "{}", asked.len());
}
