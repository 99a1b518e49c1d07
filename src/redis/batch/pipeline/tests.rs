use std::cell::Cell;

use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::*;

#[test]
fn calls_start_at_once_and_end_in_order() {
    let started = Cell::new(0);
    let mut calls = Pipeline::new();
    let mut replies = Vec::new();
    for _ in 0..3 {
        let (reply, replied) = oneshot::channel();
        replies.push(reply);
        let started = &started;
        let call = async move {
            started.set(started.get() + 1);
            replied.await.expect("it is answered")
        };
        calls.send(call).now_or_never().expect("it does not wait");
    }
    assert_eq!((started.get(), calls.len()), (3, 3));
    let mut replies = replies.into_iter();
    let (first, second, third) = (replies.next(), replies.next(), replies.next());
    let answer = |reply: Option<oneshot::Sender<u32>>, with| {
        reply.expect("three").send(with).expect("it waits");
    };
    answer(second, 2);
    assert_eq!(calls.next().now_or_never(), None);
    answer(first, 1);
    assert_eq!(calls.next().now_or_never(), Some(Some(1)));
    assert_eq!(calls.next().now_or_never(), Some(Some(2)));
    assert_eq!(calls.next().now_or_never(), None);
    answer(third, 3);
    assert_eq!(calls.next().now_or_never(), Some(Some(3)));
    assert_eq!(calls.next().now_or_never(), Some(None));
}

#[test]
fn call_that_ends_at_once_is_returned_by_next() {
    let mut calls = Pipeline::new();
    calls
        .send(async { 7 })
        .now_or_never()
        .expect("it does not wait");
    assert_eq!(calls.len(), 1);
    assert_eq!(calls.next().now_or_never(), Some(Some(7)));
    assert!(calls.is_empty());
}

#[test]
fn younger_calls_go_on_while_the_oldest_waits() {
    let sent_again = Cell::new(0);
    let mut calls = Pipeline::new();
    let mut replies = Vec::new();
    for _ in 0..3 {
        let (reply, replied) = oneshot::channel();
        replies.push(reply);
        let sent_again = &sent_again;
        let call = async move {
            let _: u32 = replied.await.expect("it is answered");
            sent_again.set(sent_again.get() + 1);
            std::future::pending::<()>().await;
        };
        calls.send(call).now_or_never().expect("it does not wait");
    }
    for reply in replies {
        reply.send(1).expect("it waits");
    }
    assert_eq!(calls.next().now_or_never(), None);
    assert_eq!(sent_again.get(), 3);
}
