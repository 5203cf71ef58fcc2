//! `dubbo-interface`: `/dubbo/<interface>/providers/<URL>`, both escaped; everything is in the URL, the value is empty.

use std::collections::BTreeMap;

use waypost_catalog::{Node, Protocol, ServiceName};

use super::{
    DecodeError, Endpoint, Found, dubbo,
    foreign::{Labels, VERSION, ZONE, labels_with_version, take, weight_as_it_is},
};

pub(super) const SHAPE: &str = "<prefix><interface>/providers/<URL>";
const PROVIDERS: &str = "providers";
const WEIGHT: &str = "weight";
/// Parameters that become metadata. The others describe the interface to Dubbo's consumers.
const KEPT: [&str; 2] = ["application", "group"];

/// The node of a key. Beside the providers Dubbo keeps a key for each folder above them, its consumers and its rules.
pub(super) fn decode(path: &str, protocol: Protocol) -> Result<(ServiceName, Found), DecodeError> {
    let mut parts = path.splitn(3, '/');
    let (Some(interface), Some(category), Some(url)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(DecodeError::NoNode("a folder of Dubbo's"));
    };
    if category != PROVIDERS {
        return Err(DecodeError::NoNode("not about a provider"));
    }
    let unescaped = |text| dubbo::unescape(text).ok_or(DecodeError::KeyShape { expected: SHAPE });
    let service = ServiceName::new(&unescaped(interface)?)?;
    Ok((service, provider(&unescaped(url)?, protocol)?))
}

fn provider(url: &str, protocol: Protocol) -> Result<Found, DecodeError> {
    let (scheme, rest) = url.split_once("://").ok_or(DecodeError::KeyShape { expected: SHAPE })?;
    if !dubbo::schemes(protocol).contains(&scheme) {
        let found = scheme.chars().take(80).collect();
        return Err(DecodeError::NoEndpoint { wanted: dubbo::WRITTEN, protocol: protocol.as_str(), found });
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    let endpoint = Endpoint::parse(authority)?;
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let text = |text: &str| dubbo::unescape(text).unwrap_or_else(|| text.to_owned());
    let mut parameters: Labels = pairs.map(|(name, value)| (name.to_owned(), text(value))).collect();
    let weight = take(&mut parameters, WEIGHT).parse().map_or(dubbo::DEFAULT_WEIGHT, weight_as_it_is);
    let (zone, version) = (take(&mut parameters, ZONE), take(&mut parameters, VERSION));
    parameters.retain(|name, _| KEPT.contains(&name.as_str()));
    let found = Found::plain(endpoint, authority, protocol);
    Ok(found.with(|node| Node { weight, zone, version, metadata: parameters, ..node }))
}

/// The key's part below the root.
pub(super) fn encode(service: &ServiceName, node: &Node) -> String {
    let weight = node.weight.to_string();
    let mut parameters = BTreeMap::from([("anyhost", "true"), ("interface", service), ("side", "provider")]);
    parameters.extend(labels_with_version(node));
    parameters.insert(WEIGHT, &weight);
    // Dubbo writes values as they are; only what would end one of them is escaped.
    let value =
        |text: &str| if text.contains(['&', '%', '+', '#', '=']) { dubbo::escape(text) } else { text.to_owned() };
    let pairs: Vec<String> = parameters.iter().map(|(name, text)| format!("{name}={}", value(text))).collect();
    let url = format!("{}://{}/{service}?{}", dubbo::WRITTEN, node.address, pairs.join("&"));
    format!("{}/{PROVIDERS}/{}", dubbo::escape(service), dubbo::escape(&url))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::format::Format::DubboInterface;

    const INTERFACE: &str = "org.apache.dubbo.UserProvider";

    fn read(protocol: Protocol, url: &str) -> Result<Node, DecodeError> {
        let key = format!("/dubbo/{INTERFACE}/providers/{}", dubbo::escape(url));
        DubboInterface.decode("/dubbo/", &key, b"", protocol).map(one).map(|(service, node)| {
            assert_eq!(&*service, INTERFACE);
            node
        })
    }

    #[test]
    fn a_providers_url_is_read() {
        let key = "/dubbo/org.apache.dubbo.UserProvider/providers/tri%3A%2F%2F10.0.0.5%3A20000%2Forg.apache.dubbo.UserProvider%3Fanyhost%3Dtrue%26application%3Duser-app%26group%3Dg%26interface%3Dorg.apache.dubbo.UserProvider%26methods%3DGetUser%2CAdd%26side%3Dprovider%26version%3D1.0.0%26weight%3D30";
        let (service, node) = one(DubboInterface.decode("/dubbo/", key, b"", Protocol::Http2).unwrap());
        assert_eq!((&*service, node.address.to_string().as_str()), (INTERFACE, "10.0.0.5:20000"));
        assert_eq!((node.weight, &*node.version, &*node.id), (30, "1.0.0", "10.0.0.5:20000"));
        assert_eq!(
            node.metadata,
            Labels::from([("application", "user-app"), ("group", "g")].map(|(k, v)| (k.into(), v.into())))
        );
    }

    #[test]
    fn a_weight_is_what_the_consumers_would_take_it_for() {
        let weight = |query: &str| read(Protocol::Http2, &format!("tri://10.0.0.5:1/x{query}")).unwrap().weight;
        assert_eq!(
            (weight(""), weight("?weight="), weight("?weight=7"), weight("?weight=0"), weight("?weight=-1")),
            (100, 100, 7, 0, 0)
        );
    }

    #[test]
    fn a_provider_that_speaks_no_http_and_a_bad_url_are_refused() {
        let error = read(Protocol::Http2, "dubbo://10.0.0.5:20000/x").unwrap_err();
        assert_eq!(error.to_string(), "no tri:// endpoint, which protocol http2 needs, among \"dubbo\"");
        assert!(
            read(Protocol::Http1, "rest://10.0.0.5:1/x").is_ok() && read(Protocol::Http1, "tri://10.0.0.5:1").is_ok()
        );
        for url in
            ["", "tri", "tri://", "tri://host/x", "tri://10.0.0.5/x", "tri://10.0.0.5:0/x", "rest://10.0.0.5:1/x"]
        {
            assert!(read(Protocol::Http2, url).is_err(), "{url}");
        }
        assert!(decode("a.B/providers/%zz", Protocol::Http2).is_err());
    }

    #[test]
    fn folders_consumers_and_rules_are_nobodys_fault() {
        for path in [
            "",
            "a.B",
            "a.B/providers",
            "a.B/consumers/consumer%3A%2F%2F10.0.0.5",
            "a.B/configurators",
            "metadata/app/7",
            "config/dubbo/x",
        ] {
            let outcome = decode_at(DubboInterface, "/dubbo/", &format!("/dubbo/{path}"), "");
            assert!(matches!(outcome, Err(DecodeError::NoNode(_))), "{path}: {outcome:?}");
        }
    }

    #[test]
    fn what_is_written_is_a_triple_provider() {
        let (key, value) = encode_full(DubboInterface, INTERFACE);
        let url = "tri://10.0.0.5:8080/org.apache.dubbo.UserProvider?anyhost=true&interface=org.apache.dubbo.UserProvider&k=v&side=provider&version=1.4&weight=2&zone=a";
        assert_eq!(key, format!("/dubbo/{INTERFACE}/providers/{}", dubbo::escape(url)));
        assert_eq!(value, "");
        let odd = Node { zone: "a&weight=7".into(), ..node("10.0.0.5:80") };
        let (key, _) = encoded(DubboInterface, "/dubbo/", INTERFACE, "i", &odd);
        let (_, read) = decode_at(DubboInterface, "/dubbo/", &key, "").unwrap();
        assert_eq!((read.weight, &*read.zone), (1, "a&weight=7"));
    }
}
