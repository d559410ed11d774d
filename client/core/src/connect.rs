//! The channel to a daemon: over a Unix socket or TCP, with TLS and a token where they are asked for, with a bounded wait, and with pings that notice a daemon that
//! stopped answering in the middle of a call.

use std::{path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint as Transport, Uri},
};
use tower::service_fn;

use crate::{ClientError, Credentials, Endpoint, credentials::TokenOf, error::append_causes};

/// A channel that adds this side's token to each call.
pub(crate) type Connection = InterceptedService<Channel, TokenOf>;

/// How often a connection with a call on it is pinged. A compile may be silent for minutes, a daemon may not.
const PING_EVERY: Duration = Duration::from_secs(10);
/// How long a ping may take before the connection counts as broken: a node whose cores all compile answers slowly.
const PING_TIMEOUT: Duration = Duration::from_secs(30);

/// A channel that is connected, and connects again by itself when the connection broke.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    timeout: Duration,
    credentials: &Credentials,
) -> Result<Connection, ClientError> {
    let tokens = credentials.tokens(endpoint)?;
    let tls = matches!(endpoint, Endpoint::Https(_)).then(|| credentials.tls()).transpose()?;

    let unreachable = |problem: String| ClientError::Unreachable { endpoint: endpoint.to_string(), problem };
    let connecting = async {
        match endpoint {
            Endpoint::Unix(path) => {
                let transport = configured(Transport::from_static("http://piecewised"), timeout);
                transport.connect_with_connector(unix(path.clone())).await
            }
            Endpoint::Http(authority) => {
                let transport = configured(Transport::from_shared(format!("http://{authority}"))?, timeout);
                transport.connect().await
            }
            Endpoint::Https(authority) => {
                let transport = configured(Transport::from_shared(format!("https://{authority}"))?, timeout);
                transport.tls_config(tls.unwrap_or_default())?.connect().await
            }
        }
    };
    match tokio::time::timeout(timeout, connecting).await {
        Ok(Ok(channel)) => Ok(InterceptedService::new(channel, tokens)),
        Ok(Err(error)) => {
            // tonic's own words, "transport error", say nothing.
            let mut problem = String::new();
            append_causes(&mut problem, std::error::Error::source(&error));
            Err(unreachable(problem.trim_start_matches(": ").to_owned()))
        }
        Err(_) => Err(unreachable(format!("no connection within {timeout:?}"))),
    }
}

fn configured(transport: Transport, timeout: Duration) -> Transport {
    transport
        .connect_timeout(timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
}

/// Connects to a socket file whatever the URI says; tonic's own `unix:` URIs can't hold every path.
fn unix(
    path: PathBuf,
) -> impl tower::Service<Uri, Response = TokioIo<UnixStream>, Error = std::io::Error, Future: Send> + Send + 'static {
    service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    })
}
