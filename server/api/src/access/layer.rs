//! The door: each call comes through here, whichever service it is for.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body_util::BodyExt as _;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::Access;

/// Lets in whom [`Access`] admits, with who it is in the request's extensions, and counts the call until its last byte was sent.
#[derive(Debug, Clone)]
pub(crate) struct AccessLayer(pub(crate) Arc<Access>);

impl<S> Layer<S> for AccessLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { access: Arc::clone(&self.0), inner }
    }
}

/// A service behind the door.
#[derive(Debug, Clone)]
pub(crate) struct Guarded<S> {
    access: Arc<Access>,
    inner: S,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        match self.access.admit(request.uri().path(), request.headers(), request.extensions()) {
            Ok((caller, open)) => {
                request.extensions_mut().insert(caller);
                let answer = self.inner.call(request);
                Box::pin(async move {
                    let answer = answer.await?;
                    // Dropped with the body: when it was sent, or its receiver has gone.
                    Ok(answer.map(|body| {
                        Body::new(body.map_frame(move |frame| {
                            let _is_open = &open;
                            frame
                        }))
                    }))
                })
            }
            Err(error) => {
                if let Some(n_more) = self.access.lines.say() {
                    let path: String = request.uri().path().chars().take(100).collect();
                    tracing::info!(target: "audit", %path, n_more, "refused: {error:?}");
                }
                Box::pin(std::future::ready(Ok(Status::from(error).into_http())))
            }
        }
    }
}
