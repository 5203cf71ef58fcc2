//! Asks a gRPC server by the protocol that gRPC has for it: `grpc.health.v1.Health/Check`.

use std::{error::Error as _, io, net::SocketAddr};

use hyper::Uri;
use hyper_util::rt::TokioIo;
use tonic::{Code, Status, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    ProbeError,
    connect::{self, Alpn},
};
use crate::config::GrpcProbe;

pub(super) async fn ask(probe: &GrpcProbe, address: SocketAddr) -> Result<String, ProbeError> {
    let mut stream = Some(connect::open(address, probe.tls.as_ref(), Alpn::Http2).await?);
    let connector = tower::service_fn(move |_: Uri| {
        // This connection and no other: it is not made again behind the probe's back.
        let stream = stream.take().map(TokioIo::new).ok_or(io::ErrorKind::NotConnected);
        std::future::ready(stream.map_err(io::Error::from))
    });
    let broken = |error: tonic::transport::Error| ProbeError::Grpc(causes(&error));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(broken)?;
    let endpoint = match origin(probe, address) {
        Some(origin) => endpoint.origin(origin),
        None => endpoint,
    };
    let channel = endpoint.connect_with_connector(connector).await.map_err(broken)?;
    let service = probe.service.clone();
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service: service.clone() }).await;
    let status = match answer {
        Ok(answer) => answer.into_inner().status(),
        Err(status) if status.code() == Code::NotFound => ServingStatus::ServiceUnknown,
        Err(status) if status.code() == Code::Unimplemented => return Err(ProbeError::NoHealthService),
        Err(status) => return Err(ProbeError::Grpc(describe(&status))),
    };
    match status {
        ServingStatus::Serving => Ok(format!("{} is SERVING", whole(&service))),
        ServingStatus::ServiceUnknown => Err(ProbeError::UnknownService { service }),
        status @ (ServingStatus::NotServing | ServingStatus::Unknown) => {
            Err(ProbeError::NotServing { service, status: status.as_str_name() })
        }
    }
}

/// Under which name the server is asked: that of its certificate, where there is one to go by.
fn origin(probe: &GrpcProbe, address: SocketAddr) -> Option<Uri> {
    let tls = probe.tls.as_ref()?;
    let host = match &tls.server_name {
        Some(name) => format!("{}:{}", name.to_str(), address.port()),
        None => address.to_string(),
    };
    Uri::builder().scheme("https").authority(host).path_and_query("/").build().ok()
}

/// The name of a service, or what an empty one stands for.
pub(super) fn whole(service: &str) -> String {
    if service.is_empty() { "the server".to_owned() } else { format!("service {service:?}") }
}

fn describe(status: &Status) -> String {
    let cause = status.source().map(|source| format!(": {}", causes(source))).unwrap_or_default();
    format!("{:?}: {}{cause}", status.code(), status.message())
}

/// An error with what it was caused by.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        said.push_str(": ");
        said.push_str(&cause.to_string());
        next = cause.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use tonic::service::Routes;
    use tonic_health::{ServingStatus as Reported, server::health_reporter};

    use super::*;
    use crate::{
        check::probe::testing::{Authority, serve},
        config::{CheckTls, Verify},
    };

    fn probing(service: &str) -> GrpcProbe {
        GrpcProbe { port: None, tls: None, service: service.to_owned() }
    }

    async fn outcome(probe: &GrpcProbe, address: SocketAddr) -> Result<String, String> {
        ask(probe, address).await.map_err(|error| error.to_string())
    }

    async fn server() -> axum::Router {
        let (reporter, health) = health_reporter();
        reporter.set_service_status("shop.Orders", Reported::Serving).await;
        reporter.set_service_status("shop.Stock", Reported::NotServing).await;
        reporter.set_service_status("shop.Mail", Reported::Unknown).await;
        Routes::new(health).into_axum_router()
    }

    #[tokio::test]
    async fn only_a_service_that_is_serving_passes_and_every_other_answer_says_what_it_is() {
        let address = serve(server().await, None).await;
        for (service, expected) in [
            ("", Ok("the server is SERVING")),
            ("shop.Orders", Ok("service \"shop.Orders\" is SERVING")),
            ("shop.Stock", Err("service \"shop.Stock\" is NOT_SERVING")),
            ("shop.Mail", Err("service \"shop.Mail\" is UNKNOWN")),
            ("shop.Moon", Err("the server knows no service \"shop.Moon\": check the key service")),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(outcome(&probing(service), address).await, expected);
        }
    }

    #[tokio::test]
    async fn a_server_without_the_health_protocol_is_told_from_one_that_is_no_grpc_server() {
        let without = serve(Routes::default().prepare().into_axum_router(), None).await;
        let failed = outcome(&probing(""), without).await.unwrap_err();
        assert!(failed.contains("does not implement grpc.health.v1.Health"), "{failed}");
        let web = axum::Router::new().fallback(|| async { axum::http::StatusCode::FORBIDDEN });
        let failed = outcome(&probing(""), serve(web, None).await).await.unwrap_err();
        assert!(failed.starts_with("no gRPC answer: PermissionDenied"), "{failed}");
    }

    #[tokio::test]
    async fn a_server_is_asked_over_tls_and_its_certificate_counts() {
        let (authority, other) = (Authority::new("shop.example"), Authority::new("shop.example"));
        let address = serve(server().await, Some(authority.acceptor.clone())).await;
        let over = |verify: Verify| {
            let server_name = Some("shop.example".try_into().unwrap());
            GrpcProbe { tls: Some(CheckTls { verify, server_name }), ..probing("shop.Orders") }
        };
        assert!(outcome(&over(Verify::Authority(authority.file())), address).await.is_ok());
        assert!(outcome(&over(Verify::Nothing), address).await.is_ok());
        let failed = outcome(&over(Verify::Authority(other.file())), address).await.unwrap_err();
        assert!(failed.starts_with(&format!("no TLS with {address}")), "{failed}");
        let failed = outcome(&probing(""), address).await.unwrap_err();
        assert!(failed.starts_with("no gRPC answer: "), "{failed}");
    }
}
