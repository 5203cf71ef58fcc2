//! Which of this host's services is meant.

use anyhow::Context as _;
use clap::Args;
use waypost_catalog::ServiceName;

use super::{exit::Exit, source::told, values};
use crate::{
    api::types::Registration,
    client::{Client, Path},
};

/// A service of this host.
#[derive(Clone, Debug, Args)]
pub(super) struct InstanceOptions {
    /// The service
    #[arg(value_name = "SERVICE", value_parser = values::service_name)]
    pub(super) service: ServiceName,
    /// Its instance; may be left out where the service has one only
    #[arg(value_name = "INSTANCE", value_parser = values::segment)]
    pub(super) instance: Option<String>,
}

impl InstanceOptions {
    /// The name of the instance, as the agent knows it.
    pub(super) async fn resolve(self, client: &Client) -> anyhow::Result<(ServiceName, String)> {
        let Self { service, instance } = self;
        let instance = match instance {
            Some(instance) => instance,
            None => {
                let found = of(client, Some(&service)).await?;
                only(&service, found.into_iter().map(|registration| registration.instance).collect())?
            }
        };
        Ok((service, instance))
    }
}

/// The services of this host, or those of one name.
pub(super) async fn of(client: &Client, service: Option<&ServiceName>) -> anyhow::Result<Vec<Registration>> {
    let mut found: Vec<Registration> = client.get(&Path::of(&["registrations"])).await.map_err(told)?;
    found.retain(|registration| service.is_none_or(|service| registration.service == service.as_str()));
    Ok(found)
}

/// The only one, or else the reason why nobody can say which is meant.
pub(super) fn only(service: &ServiceName, mut instances: Vec<String>) -> anyhow::Result<String> {
    match instances.len() {
        0 => Err(Exit::not_there(format!("no instance of {service} is here"))),
        1 => instances.pop().context("no instance"),
        _ => Err(Exit::usage(format!("{service} has several instances, name one of them: {}", instances.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_must_be_named_where_there_are_several() {
        let web = ServiceName::new("web").unwrap();
        assert_eq!(only(&web, vec!["a".into()]).unwrap(), "a");
        let error = only(&web, vec!["a".into(), "b".into()]).unwrap_err().to_string();
        assert!(error.ends_with("a, b"), "{error}");
        assert!(only(&web, Vec::new()).is_err());
    }
}
