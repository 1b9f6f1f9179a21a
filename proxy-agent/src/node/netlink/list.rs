//! Lists that are asked for, each by a connection of its own.

use std::{io, num::NonZeroI32};

use futures::{Stream, StreamExt as _};
use rtnetlink::{
    Handle, new_connection_with_strict_check,
    packet_core::{ErrorMessage, NetlinkMessage, NetlinkPayload},
};

/// A connection for one list, which lasts as long as this is kept. It lists
/// only what is asked for, as a router's tables may be long, and hears nothing
/// else: news of what others asked for carry the numbers of their requests, and
/// would be taken for answers to ours.
pub(super) fn lister() -> io::Result<Handle> {
    let (mut connection, handle, _) = new_connection_with_strict_check()?;
    // Without it, the end of a list looks like that of the connection.
    connection.set_forward_done(true);
    tokio::spawn(connection);
    Ok(handle)
}

/// Applies `take` to a whole list, and returns all results. A list that breaks off is an
/// error, never a shorter list: the missing entries would be taken for removed (S55).
pub(super) async fn whole_list<M, I: IntoIterator>(
    list: impl Stream<Item = Result<M, rtnetlink::Error>>,
    take: impl Fn(&M) -> I,
) -> Result<Vec<I::Item>, rtnetlink::Error> {
    let mut list = std::pin::pin!(list);
    let mut taken = Vec::new();
    loop {
        match list.next().await {
            Some(Ok(message)) => taken.extend(take(&message)),
            Some(Err(rtnetlink::Error::UnexpectedMessage(NetlinkMessage {
                payload: NetlinkPayload::Done(done),
                ..
            }))) => {
                let Some(code) = NonZeroI32::new(done.code) else {
                    return Ok(taken);
                };
                let mut error = ErrorMessage::default();
                error.code = Some(code);
                return Err(rtnetlink::Error::NetlinkError(error));
            }
            Some(Err(error)) => return Err(error),
            None => return Err(rtnetlink::Error::RequestFailed),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use rstest::rstest;
    use rtnetlink::packet_core::{DoneMessage, NetlinkHeader};

    use super::*;

    fn error(code: i32) -> rtnetlink::Error {
        let mut error = ErrorMessage::default();
        error.code = NonZeroI32::new(-code);
        rtnetlink::Error::NetlinkError(error)
    }

    /// The end of a list, or the error that ends it.
    fn end(code: i32) -> rtnetlink::Error {
        let mut done = DoneMessage::default();
        done.code = -code;
        let done = NetlinkPayload::Done(done);
        rtnetlink::Error::UnexpectedMessage(NetlinkMessage::new(NetlinkHeader::default(), done))
    }

    /// A list that breaks off is no shorter list (S55).
    #[rstest]
    #[case::whole(Some(end(0)), Some(2))]
    #[case::without_an_end(None, None)]
    #[case::ended_by_an_error(Some(end(libc::ENOMEM)), None)]
    #[case::without_memory(Some(error(libc::ENOMEM)), None)]
    #[case::interrupted(Some(error(libc::EINTR)), None)]
    #[case::without_answer(Some(rtnetlink::Error::RequestFailed), None)]
    #[tokio::test]
    async fn a_list_that_breaks_off_is_an_error(
        #[case] end: Option<rtnetlink::Error>,
        #[case] entries: Option<usize>,
    ) {
        let list = stream::iter([Ok(1), Ok(2)].into_iter().chain(end.map(Err)));
        let listed = whole_list(list, |entry| [*entry]).await;
        assert_eq!(listed.ok().map(|list| list.len()), entries);
    }
}
