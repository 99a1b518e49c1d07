//! Tower services: `ready`, then `call`.

use std::{
    convert::Infallible,
    future::{Ready, ready},
};

use tower::{Service, ServiceExt, util::ServiceFn};

use super::Keys;
use crate::load::Subject;

pub type HttpRequest = http::Request<String>;

/// A service under load. `MEMORY` is true if it completes without I/O.
#[derive(Clone)]
pub struct Layered<S, R, A, const MEMORY: bool> {
    service: S,
    request: R,
    admitted: A,
}

impl<S, R, A, const MEMORY: bool> Layered<S, R, A, MEMORY> {
    pub fn new(service: S, request: R, admitted: A) -> Self {
        Self {
            service,
            request,
            admitted,
        }
    }
}

impl<S, R, A, Req, const MEMORY: bool> Subject for Layered<S, R, A, MEMORY>
where
    S: Service<Req> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Send,
    S::Response: Send,
    R: Fn(usize) -> Req + Clone + Send + Sync + 'static,
    A: Fn(Result<S::Response, S::Error>) -> bool + Clone + Send + Sync + 'static,
    Req: Send,
{
    const IN_MEMORY: bool = MEMORY;

    async fn take(&mut self, scope: usize) -> bool {
        let request = (self.request)(scope);
        let service = match self.service.ready().await {
            Ok(service) => service,
            Err(error) => return (self.admitted)(Err(error)),
        };
        let answer = service.call(request).await;
        (self.admitted)(answer)
    }
}

type NoOp<Req> = ServiceFn<fn(Req) -> Ready<Result<bool, Infallible>>>;

/// A service that returns `true` at once.
pub fn no_op<Req>() -> NoOp<Req> {
    tower::service_fn((|_| ready(Ok(true))) as fn(Req) -> _)
}

type NoOpHttp<B> = ServiceFn<fn(HttpRequest) -> Ready<Result<http::Response<B>, Infallible>>>;

/// A service that returns status 200 and an empty body at once.
pub fn no_op_http<B: Default>() -> NoOpHttp<B> {
    tower::service_fn((|_| ready(Ok(http::Response::default()))) as fn(HttpRequest) -> _)
}

/// Makes requests with the key in a header.
pub fn requests(keys: &Keys) -> impl Fn(usize) -> HttpRequest + Clone + Send + Sync + use<> {
    let values: std::sync::Arc<[http::HeaderValue]> = keys
        .iter()
        .map(|key| http::HeaderValue::from_str(key).expect("letters and digits"))
        .collect();
    move |scope| {
        let mut request = HttpRequest::default();
        let value = values[scope].clone();
        request.headers_mut().insert(KEY_HEADER, value);
        request
    }
}

pub const KEY_HEADER: http::HeaderName = http::HeaderName::from_static("x-api-key");

pub fn is_success<B, E>(answer: Result<http::Response<B>, E>) -> bool {
    answer.is_ok_and(|response| response.status().is_success())
}

/// The key in a request's header.
pub fn key_of<T>(request: &http::Request<T>) -> Option<&str> {
    request.headers().get(KEY_HEADER)?.to_str().ok()
}
