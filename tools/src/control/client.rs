//! The command line's side of the control API: one request per connection, over the unix socket.

use super::{DoneDoc, ErrorDoc};
use crate::failure::{Failure, GENERIC, NOT_RUNNING, UNREACHABLE};
use crate::status::StatusDoc;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;

const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Longer than the daemon's own limit, so that its word arrives.
const ANSWER_WAIT: Duration = Duration::from_secs(150);

/// Talks to the daemon of one socket.
pub(crate) struct Client {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// Nothing is sent yet.
    pub(crate) fn new(socket: PathBuf) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| Failure::generic(format!("cannot start a runtime: {error}")))?;
        Ok(Client { socket, runtime })
    }

    /// Status of one resource, or of all. Exit code 3 if the daemon does not run.
    pub(crate) fn status(&self, resource: Option<&str>) -> Result<StatusDoc, Failure> {
        let path = match resource {
            Some(resource) => format!("/v1/resources/{}", segment(resource)?),
            None => "/v1/status".to_owned(),
        };
        self.request(Method::GET, &path, Bytes::new())
    }

    /// Give a command. Exit code 4 if the daemon does not run.
    pub(crate) fn command(
        &self,
        resource: &str,
        verb: &str,
        options: &impl Serialize,
    ) -> Result<DoneDoc, Failure> {
        let body = serde_json::to_vec(options).map_err(|error| Failure::generic(error.to_string()))?;
        let path = format!("/v1/resources/{}/{verb}", segment(resource)?);
        self.request(Method::POST, &path, Bytes::from(body)).map_err(|failure| match failure.code {
            NOT_RUNNING => Failure::new(UNREACHABLE, failure.message),
            _ => failure,
        })
    }

    fn request<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Failure> {
        // The timer is made inside: it needs the runtime's clock.
        let limited = async { tokio::time::timeout(ANSWER_WAIT, self.exchange(method, path, body)).await };
        let answer = self.runtime.block_on(limited);
        let (status, bytes) = answer.map_err(|_| {
            Failure::new(UNREACHABLE, format!("the daemon did not answer within {ANSWER_WAIT:?}"))
        })??;
        if status != StatusCode::OK {
            let failure = serde_json::from_slice::<ErrorDoc>(&bytes)
                .map(|doc| Failure::new(doc.error.code, doc.error.message))
                .unwrap_or_else(|_| Failure::new(GENERIC, format!("the daemon answered {status}")));
            return Err(failure);
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| Failure::generic(format!("the daemon's answer cannot be understood: {error}")))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.not_reached(&error))?;
        let broken = |error: &dyn std::fmt::Display| {
            Failure::new(UNREACHABLE, format!("the connection to the daemon broke: {error}"))
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        // The connection lives in its own task; its errors reach the request.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "lockstep")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| Failure::generic(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let bytes = body.collect().await.map_err(|error| broken(&error))?.to_bytes();
        Ok((status, bytes))
    }

    fn not_reached(&self, error: &std::io::Error) -> Failure {
        let socket = self.socket.display();
        match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => Failure::new(
                NOT_RUNNING,
                format!("the daemon does not run: nothing answers at {socket} (start: lockstep daemon)"),
            ),
            std::io::ErrorKind::PermissionDenied => Failure::new(
                UNREACHABLE,
                format!("no permission to talk to the daemon at {socket}: be root, or a member of its group"),
            ),
            _ => Failure::new(UNREACHABLE, format!("the daemon cannot be reached at {socket}: {error}")),
        }
    }
}

/// A name as a part of a path: only what can be a resource's name needs no escape, and nothing else exists.
fn segment(resource: &str) -> Result<&str, Failure> {
    if crate::config::is_name(resource) {
        Ok(resource)
    } else {
        Err(Failure::usage(format!("\"{resource}\" cannot be the name of a resource")))
    }
}
