//! Keys by template: `/apps/{service}/{ip}/{pid}`, filled in with what is known of this process.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::address::{AddressError, AddressSource};

/// A pattern for keys. `{service}`, `{instance}`, `{ip}`, `{port}`, `{pid}` and `{hostname}` are filled in; `{{` and `}}`
/// stand for braces. In `{ip}:` an IPv6 address gets its brackets.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use waypost_registry::{KeyFields, KeyTemplate};
///
/// let template: KeyTemplate = "/apps/{service}/{ip}:{port}".parse()?;
/// let fields = KeyFields::local().service("orders").ip("10.0.0.5".parse()?).port(8080);
/// assert_eq!(template.fill(&fields)?, "/apps/orders/10.0.0.5:8080");
///
/// let error = "/apps/{servce}".parse::<KeyTemplate>().unwrap_err().to_string();
/// assert!(error.contains("{servce} at character 7"), "{error}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTemplate {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Field(Field),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Service,
    Instance,
    Ip,
    Port,
    Pid,
    Hostname,
}

impl Field {
    const ALL: [Self; 6] = [Self::Service, Self::Instance, Self::Ip, Self::Port, Self::Pid, Self::Hostname];

    const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Instance => "instance",
            Self::Ip => "ip",
            Self::Port => "port",
            Self::Pid => "pid",
            Self::Hostname => "hostname",
        }
    }
}

/// Why a text is no template. Places are counted in characters, from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyTemplateError {
    /// A placeholder that nothing is known of.
    #[error(
        "key template {template:?} has {{{placeholder}}} at character {at}, which is unknown: use {{service}}, {{instance}}, {{ip}}, {{port}}, {{pid}} or {{hostname}}, and {{{{ and }}}} for braces"
    )]
    Unknown {
        /// As given.
        template: String,
        /// What stands between the braces.
        placeholder: String,
        /// Where its brace is.
        at: usize,
    },
    /// A brace without its other one.
    #[error(
        "key template {template:?} has a brace at character {at} without its other one: write {{{{ or }}}} for a brace itself"
    )]
    Unbalanced {
        /// As given.
        template: String,
        /// Where it is.
        at: usize,
    },
    /// Nothing at all: etcd has no such key.
    #[error("a key template must not be empty")]
    Empty,
}

/// A template asks for what was not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key template {template:?} needs {{{field}}}, which was not given or is empty")]
pub struct MissingField {
    /// The template.
    pub template: String,
    /// The placeholder's name.
    pub field: &'static str,
}

impl FromStr for KeyTemplate {
    type Err = KeyTemplateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unbalanced = |at| KeyTemplateError::Unbalanced { template: text.to_owned(), at };
        let (mut parts, mut literal) = (Vec::new(), String::new());
        let mut characters = (1..).zip(text.chars()).peekable();
        while let Some((at, character)) = characters.next() {
            match character {
                '{' | '}' if characters.next_if(|(_, next)| *next == character).is_some() => literal.push(character),
                '}' => return Err(unbalanced(at)),
                '{' => {
                    let mut name = String::new();
                    loop {
                        match characters.next() {
                            Some((_, '}')) => break,
                            Some((_, '{')) | None => return Err(unbalanced(at)),
                            Some((_, character)) => name.push(character),
                        }
                    }
                    let Some(field) = Field::ALL.into_iter().find(|field| field.name() == name) else {
                        return Err(KeyTemplateError::Unknown { template: text.to_owned(), placeholder: name, at });
                    };
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Field(field));
                }
                other => literal.push(other),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        if parts.is_empty() {
            return Err(KeyTemplateError::Empty);
        }
        Ok(Self { text: text.to_owned(), parts })
    }
}

impl fmt::Display for KeyTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl KeyTemplate {
    /// The key.
    ///
    /// # Errors
    /// [`MissingField`], naming what the template needs and `fields` do not have.
    pub fn fill(&self, fields: &KeyFields) -> Result<String, MissingField> {
        let mut key = String::new();
        for (index, part) in self.parts.iter().enumerate() {
            let field = match part {
                Part::Literal(literal) => {
                    key.push_str(literal);
                    continue;
                }
                Part::Field(field) => *field,
            };
            let before_colon = matches!(self.parts.get(index + 1), Some(Part::Literal(next)) if next.starts_with(':'));
            let value = match (field, fields.ip) {
                (Field::Service, _) => fields.service.clone(),
                (Field::Instance, _) => fields.instance.clone(),
                (Field::Ip, Some(IpAddr::V6(ip))) if before_colon => Some(format!("[{ip}]")),
                (Field::Ip, ip) => ip.map(|ip| ip.to_string()),
                (Field::Port, _) => fields.port.map(|port| port.to_string()),
                (Field::Pid, _) => Some(fields.pid.to_string()),
                (Field::Hostname, _) => Some(fields.hostname.clone()),
            };
            match value.filter(|value| !value.is_empty()) {
                Some(value) => key.push_str(&value),
                None => return Err(MissingField { template: self.text.clone(), field: field.name() }),
            }
        }
        Ok(key)
    }
}

/// What a [`KeyTemplate`] is filled in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFields {
    service: Option<String>,
    instance: Option<String>,
    ip: Option<IpAddr>,
    port: Option<u16>,
    pid: u32,
    hostname: String,
}

impl KeyFields {
    /// This process's number and this host's name; the rest is still to be given.
    pub fn local() -> Self {
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { service: None, instance: None, ip: None, port: None, pid: std::process::id(), hostname }
    }

    /// `{service}`.
    #[must_use]
    pub fn service(self, name: impl Into<String>) -> Self {
        Self { service: Some(name.into()), ..self }
    }

    /// `{instance}`.
    #[must_use]
    pub fn instance(self, name: impl Into<String>) -> Self {
        Self { instance: Some(name.into()), ..self }
    }

    /// `{ip}`.
    #[must_use]
    pub fn ip(self, ip: IpAddr) -> Self {
        Self { ip: Some(ip), ..self }
    }

    /// `{ip}`, found on this host now.
    ///
    /// # Errors
    /// [`AddressError`] if there is none that fits.
    pub fn address(self, source: &AddressSource) -> Result<Self, AddressError> {
        Ok(Self { ip: Some(source.resolve(self.ip)?), ..self })
    }

    /// `{port}`.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        Self { port: Some(port), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> KeyFields {
        let local = KeyFields { pid: 42, hostname: "host-a".into(), ..KeyFields::local() };
        local.service("orders").instance("1").ip("10.0.0.5".parse().unwrap()).port(8080)
    }

    fn fill(template: &str, fields: &KeyFields) -> Result<String, String> {
        let template: KeyTemplate = template.parse().map_err(|error: KeyTemplateError| error.to_string())?;
        template.fill(fields).map_err(|error| error.to_string())
    }

    #[test]
    fn every_placeholder_is_filled_in_and_the_rest_stays_as_it_is() {
        let key = fill("/a/{service}/{instance}/{ip}:{port}/{pid}@{hostname}/z", &fields());
        assert_eq!(key.unwrap(), "/a/orders/1/10.0.0.5:8080/42@host-a/z");
        assert_eq!(fill("/only/a/literal", &fields()).unwrap(), "/only/a/literal");
    }

    #[test]
    fn doubled_braces_are_braces() {
        assert_eq!(fill("/{{{service}}}/{{service}}/}}{{", &fields()).unwrap(), "/{orders}/{service}/}{");
    }

    #[test]
    fn an_ipv6_address_has_brackets_before_a_port_only() {
        let fields = fields().ip("2001:db8::7".parse().unwrap());
        assert_eq!(fill("{ip}:{port}", &fields).unwrap(), "[2001:db8::7]:8080");
        assert_eq!(fill("{ip}/{pid}", &fields).unwrap(), "2001:db8::7/42");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_in_characters() {
        let unknown = fill("/ä/{servce}", &fields()).unwrap_err();
        assert!(unknown.contains("{servce} at character 4, which is unknown: use {service}"), "{unknown}");
        assert!(unknown.ends_with("and {{ and }} for braces"), "{unknown}");
        for (template, at) in [("/a/{service", 4), ("/a}", 3), ("/{a{service}", 2), ("{", 1), ("/{{}", 4)] {
            let error = template.parse::<KeyTemplate>().unwrap_err();
            assert_eq!(error, KeyTemplateError::Unbalanced { template: template.into(), at });
        }
        assert!(fill("{}", &fields()).unwrap_err().contains("{} at character 1"));
        assert_eq!("".parse::<KeyTemplate>().unwrap_err(), KeyTemplateError::Empty);
    }

    #[test]
    fn what_was_not_given_is_named() {
        let error = fill("/{service}/{ip}", &KeyFields::local().service("orders")).unwrap_err();
        assert_eq!(error, "key template \"/{service}/{ip}\" needs {ip}, which was not given or is empty");
        assert!(fill("/{service}", &KeyFields::local().service("")).unwrap_err().contains("{service}"));
    }

    #[test]
    fn a_template_is_printed_as_it_was_written() {
        assert_eq!("/{{a}}/{pid}".parse::<KeyTemplate>().unwrap().to_string(), "/{{a}}/{pid}");
    }
}
