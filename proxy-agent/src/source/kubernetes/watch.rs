//! From the events of one watch to updates of one kind.

use futures::{Stream, StreamExt, stream};

use super::watcher::{Error, Event};
use crate::{
    model::{Object, Parsed, api::ApiObject},
    source::Update,
};

/// What a watch's events amount to.
#[derive(Debug)]
pub enum News<T> {
    Update(Update<T>),
    /// The watch works again after an error.
    Recovered,
}

/// The updates that a watch's events amount to. Objects are parsed as they
/// come; a list takes effect when it is complete. Errors change nothing: the
/// watch itself tries again.
pub fn updates<T: Object>(
    events: impl Stream<Item = Result<Event<ApiObject<T::Fields>>, Error>>,
) -> impl Stream<Item = Result<News<T>, Error>> {
    // Objects of a list that is not complete yet.
    let list = Vec::new();
    stream::unfold((Box::pin(events), list), |(mut events, mut list)| async {
        loop {
            match events.next().await? {
                Ok(event) => {
                    if let Some(news) = take(event, &mut list) {
                        return Some((Ok(news), (events, list)));
                    }
                }
                Err(error) => return Some((Err(error), (events, list))),
            }
        }
    })
}

fn take<T: Object>(
    event: Event<ApiObject<T::Fields>>,
    list: &mut Vec<Parsed<T>>,
) -> Option<News<T>> {
    let update = match event {
        Event::Init => {
            list.clear();
            return None;
        }
        Event::InitApply(object) => {
            list.push(T::from_api(object));
            return None;
        }
        Event::InitDone => Update::Relist(std::mem::take(list)),
        Event::Apply(object) => Update::Apply(T::from_api(object)),
        Event::Delete(object) => {
            let parsed = T::from_api(object);
            // Which object is gone is all that has to be readable.
            if parsed.is_named() {
                Update::Delete(parsed.key)
            } else {
                Update::Apply(parsed)
            }
        }
        Event::Recovered => return Some(News::Recovered),
    };
    Some(News::Update(update))
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use serde_json::json;

    use super::*;
    use crate::model::{Service, service::ServiceFields};

    fn service(name: &str) -> ApiObject<ServiceFields> {
        let object = json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {"clusterIP": "10.96.0.1"},
        });
        serde_json::from_value(object).expect("a Service")
    }

    fn broken() -> Error {
        Error::Status(Box::new(Status::failure("no", "Because").with_code(500)))
    }

    /// The updates as text: `=a,b` for a list, `+a`, `-a`, `!` for an error.
    async fn texts(events: Vec<Result<Event<ApiObject<ServiceFields>>, Error>>) -> Vec<String> {
        let names = |list: Vec<Parsed<Service>>| {
            let names: Vec<_> = list
                .into_iter()
                .map(|parsed| parsed.key.name().to_owned())
                .collect();
            names.join(",")
        };
        updates::<Service>(stream::iter(events))
            .map(|news| match news {
                Ok(News::Update(Update::Relist(list))) => format!("={}", names(list)),
                Ok(News::Update(Update::Apply(parsed))) => format!("+{}", parsed.key.name()),
                Ok(News::Update(Update::Delete(key))) => format!("-{}", key.name()),
                Ok(News::Update(Update::Missing(_))) => "no watch says so".to_owned(),
                Ok(News::Recovered) => "*".to_owned(),
                Err(_) => "!".to_owned(),
            })
            .collect()
            .await
    }

    #[tokio::test]
    async fn a_list_takes_effect_when_complete() {
        let events = vec![
            Ok(Event::Init),
            Ok(Event::InitApply(service("a"))),
            Ok(Event::InitApply(service("b"))),
            Ok(Event::InitDone),
            Ok(Event::Apply(service("c"))),
            Ok(Event::Delete(service("a"))),
        ];
        assert_eq!(texts(events).await, ["=a,b", "+c", "-a"]);
    }

    /// S98: an error changes nothing; half a list is no list.
    #[tokio::test]
    async fn a_list_that_breaks_off_is_forgotten() {
        let events = vec![
            Ok(Event::Init),
            Ok(Event::InitApply(service("a"))),
            Err(broken()),
            Ok(Event::Init),
            Ok(Event::InitApply(service("b"))),
            Ok(Event::InitDone),
            Err(broken()),
        ];
        assert_eq!(texts(events).await, ["!", "=b", "!"]);
    }

    #[tokio::test]
    async fn an_empty_list_is_a_list() {
        let events = vec![Ok(Event::Init), Ok(Event::InitDone)];
        assert_eq!(texts(events).await, ["="]);
    }
}
