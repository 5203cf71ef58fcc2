//! A small gRPC service, written by hand: echo once, or several times and end with a status in the trailers.
use std::pin::Pin;

use anyhow::Result;
use futures::{Stream, StreamExt, stream};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// What is sent and what comes back.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Echo {
    /// Returned as it came.
    #[prost(string, tag = "1")]
    pub text: String,
    /// How many messages a streamed answer has.
    #[prost(uint32, tag = "2")]
    pub count: u32,
    /// Who answered.
    #[prost(string, tag = "3")]
    pub node: String,
}

/// Path of the call with one answer.
pub const ONCE: &str = "/waypost.test.Echo/Once";
/// Path of the call with `count` answers, ended with the status `FAILED_PRECONDITION` and a trailer `x-answers`.
pub const MANY: &str = "/waypost.test.Echo/Many";

type EchoStream = Pin<Box<dyn Stream<Item = Result<Echo, Status>> + Send>>;

/// The server's side.
#[derive(Clone)]
pub(crate) struct EchoService {
    pub(crate) node: String,
}

type Ready<T> = std::future::Ready<Result<Response<T>, Status>>;

#[derive(Clone)]
struct Once(EchoService);

impl tonic::server::UnaryService<Echo> for Once {
    type Response = Echo;
    type Future = Ready<Echo>;

    fn call(&mut self, request: Request<Echo>) -> Self::Future {
        std::future::ready(Ok(Response::new(Echo { node: self.0.node.clone(), ..request.into_inner() })))
    }
}

#[derive(Clone)]
struct Many(EchoService);

impl tonic::server::ServerStreamingService<Echo> for Many {
    type Response = Echo;
    type ResponseStream = EchoStream;
    type Future = Ready<EchoStream>;

    fn call(&mut self, request: Request<Echo>) -> Self::Future {
        let echo = Echo { node: self.0.node.clone(), ..request.into_inner() };
        let mut end = Status::failed_precondition("that was all");
        end.metadata_mut().insert("x-answers", echo.count.into());
        let answers = stream::iter(std::iter::repeat_n(Ok(echo.clone()), echo.count as usize));
        std::future::ready(Ok(Response::new(Box::pin(answers.chain(stream::iter([Err(end)]))))))
    }
}

impl EchoService {
    pub(crate) async fn once(self, request: axum::extract::Request) -> axum::response::Response {
        tonic::server::Grpc::new(ProstCodec::<Echo, Echo>::default())
            .unary(Once(self), request)
            .await
            .map(axum::body::Body::new)
    }

    pub(crate) async fn many(self, request: axum::extract::Request) -> axum::response::Response {
        tonic::server::Grpc::new(ProstCodec::<Echo, Echo>::default())
            .server_streaming(Many(self), request)
            .await
            .map(axum::body::Body::new)
    }
}

/// Calls [`ONCE`].
pub async fn once(channel: Channel, echo: Echo) -> Result<Echo, Status> {
    let mut client = ready(channel).await?;
    let path = PathAndQuery::from_static(ONCE);
    client.unary(Request::new(echo), path, ProstCodec::default()).await.map(Response::into_inner)
}

/// Calls [`MANY`]: the answers, and the status they ended with.
pub async fn many(channel: Channel, echo: Echo) -> Result<(Vec<Echo>, Status), Status> {
    let mut client = ready(channel).await?;
    let path = PathAndQuery::from_static(MANY);
    let mut answers = client.server_streaming(Request::new(echo), path, ProstCodec::default()).await?.into_inner();
    let mut all = Vec::new();
    loop {
        match answers.message().await {
            Ok(Some(answer)) => all.push(answer),
            Ok(None) => return Ok((all, Status::ok(""))),
            Err(status) => return Ok((all, status)),
        }
    }
}

async fn ready(channel: Channel) -> Result<tonic::client::Grpc<Channel>, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(client)
}
