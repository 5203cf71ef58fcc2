//! Who this host's services are: those of the configuration file, those made through the API, and which of them are in
//! maintenance. Pure: requests come in, what is to be registered and to be saved comes out.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use waypost_catalog::ServiceName;

use super::{ServiceId, merge_patch};
use crate::config::{self, Misplaced, Service};

/// What names a registration: a service's name and that of its instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The service's.
    pub service: ServiceName,
    /// The instance's.
    pub instance: String,
}

impl Name {
    fn of(service: &Service) -> Self {
        Self { service: service.name.clone(), instance: service.instance.clone() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.instance)
    }
}

/// Why something is in maintenance, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upkeep {
    /// The reason, in the words of whoever said so.
    pub reason: String,
    /// RFC 3339.
    pub since: String,
}

/// Why a request is refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The configuration file has it.
    #[error("{0} is of the configuration file: change it there, and the agent takes it over")]
    OwnedByFile(Name),
    /// There is no such registration.
    #[error("this agent registers no {0}: see /v1/registrations")]
    Unknown(Name),
    /// The definition is wrong.
    #[error("the definition is wrong")]
    Invalid(Vec<Misplaced>),
}

/// A registration made through the API.
#[derive(Clone, Debug, PartialEq)]
struct Made {
    /// As it was asked for, without the two names.
    definition: Map<String, Value>,
    service: Arc<Service>,
}

/// All services of this host.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    file: Vec<Arc<Service>>,
    made: BTreeMap<Name, Made>,
    host: Option<Upkeep>,
    upkeep: BTreeMap<Name, Upkeep>,
}

/// What outlives a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    registrations: Vec<SavedRegistration>,
    host_maintenance: Option<Upkeep>,
    maintenance: Vec<SavedUpkeep>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SavedRegistration {
    service: String,
    instance: String,
    definition: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SavedUpkeep {
    service: String,
    instance: String,
    #[serde(flatten)]
    upkeep: Upkeep,
}

/// A service of this host, for those who look.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its names and prefix.
    pub id: ServiceId,
    /// What it was made of, if the API made it; the file's have none.
    pub definition: Option<Map<String, Value>>,
    /// Its own maintenance, or the host's.
    pub upkeep: Option<Upkeep>,
}

impl Roster {
    /// The file's services and what was saved. What cannot be used of it any more is left out, and named.
    pub fn restore(file: &[Service], saved: Saved) -> (Self, Vec<String>) {
        let mut roster = Self { host: saved.host_maintenance, ..Self::default() };
        let mut left_out = Vec::new();
        for SavedRegistration { service, instance, definition } in saved.registrations {
            let restored = ServiceName::new(&service).map_err(|error| error.to_string()).and_then(|service| {
                let name = Name { service, instance: instance.clone() };
                roster.put(&name, definition).map_err(|refused| match refused {
                    Refused::Invalid(wrong) => {
                        let wrong = wrong.iter().map(|wrong| format!("{}: {}", wrong.path.join("."), wrong.message));
                        wrong.collect::<Vec<_>>().join("; ")
                    }
                    other => other.to_string(),
                })
            });
            if let Err(error) = restored {
                left_out.push(format!("{service}/{instance}: {error}"));
            }
        }
        for SavedUpkeep { service, instance, upkeep } in saved.maintenance {
            if let Ok(service) = ServiceName::new(&service) {
                roster.upkeep.insert(Name { service, instance }, upkeep);
            }
        }
        left_out.extend(roster.take_file(file).iter().map(|name| format!("{name}: the configuration file has it now")));
        (roster, left_out)
    }

    /// What is to be saved.
    pub fn saved(&self) -> Saved {
        Saved {
            registrations: self
                .made
                .iter()
                .map(|(name, made)| SavedRegistration {
                    service: name.service.to_string(),
                    instance: name.instance.clone(),
                    definition: made.definition.clone(),
                })
                .collect(),
            host_maintenance: self.host.clone(),
            maintenance: self
                .upkeep
                .iter()
                .map(|(name, upkeep)| SavedUpkeep {
                    service: name.service.to_string(),
                    instance: name.instance.clone(),
                    upkeep: upkeep.clone(),
                })
                .collect(),
        }
    }

    /// Makes these the file's services. The names of registrations that the file has taken over from the API.
    pub fn take_file(&mut self, services: &[Service]) -> Vec<Name> {
        self.file = services.iter().map(|service| Arc::new(service.clone())).collect();
        let taken: Vec<Name> = self.file.iter().map(|service| Name::of(service)).collect();
        let taken: Vec<Name> = taken.into_iter().filter(|name| self.made.remove(name).is_some()).collect();
        self.forget_upkeep();
        taken
    }

    /// Makes a registration, or another one of it. Whether it is new.
    ///
    /// # Errors
    /// [`Refused`] if the file has it, or the definition is wrong.
    pub fn put(&mut self, name: &Name, mut definition: Map<String, Value>) -> Result<bool, Refused> {
        if self.is_of_file(name) {
            return Err(Refused::OwnedByFile(name.clone()));
        }
        let names = [("name", name.service.as_str()), ("instance", name.instance.as_str())];
        let wrong = |path: &str, message: String| Misplaced { path: vec![path.to_owned()], message };
        for (key, value) in names {
            let given = definition.insert(key.to_owned(), value.into());
            if let Some(given) = given.filter(|given| given != value) {
                let message = format!("{given}, where the path says {value:?}: leave it out, or write the same");
                return Err(Refused::Invalid(vec![wrong(key, message)]));
            }
        }
        if definition.get("check").and_then(|check| check.get("type")).is_some_and(|kind| kind == "exec") {
            let message =
                "commands are for the configuration file: who may call the API need not be allowed to run them";
            let path = vec!["check".to_owned(), "type".to_owned()];
            return Err(Refused::Invalid(vec![Misplaced { path, message: message.to_owned() }]));
        }
        let service = config::service_from_json(&definition, "").map_err(Refused::Invalid)?;
        for (key, _) in names {
            definition.remove(key);
        }
        let made = Made { definition, service: Arc::new(service) };
        Ok(self.made.insert(name.clone(), made).is_none())
    }

    /// Changes a registration's definition by a JSON merge patch.
    ///
    /// # Errors
    /// [`Refused`] if the API has not made it, or what comes out is wrong.
    pub fn patch(&mut self, name: &Name, patch: &Map<String, Value>) -> Result<(), Refused> {
        let mut definition = self.made_by_api(name)?.definition.clone();
        merge_patch::apply(&mut definition, patch);
        self.put(name, definition).map(|_| ())
    }

    /// Ends a registration.
    ///
    /// # Errors
    /// [`Refused`] if the API has not made it.
    pub fn remove(&mut self, name: &Name) -> Result<ServiceId, Refused> {
        let id = ServiceId::of(&self.made_by_api(name)?.service);
        self.made.remove(name);
        self.forget_upkeep();
        Ok(id)
    }

    /// Puts a registration into maintenance, or takes it back.
    ///
    /// # Errors
    /// [`Refused::Unknown`].
    pub fn maintain(&mut self, name: &Name, upkeep: Option<Upkeep>) -> Result<(), Refused> {
        if !self.is_of_file(name) && !self.made.contains_key(name) {
            return Err(Refused::Unknown(name.clone()));
        }
        match upkeep {
            Some(upkeep) => _ = self.upkeep.insert(name.clone(), upkeep),
            None => _ = self.upkeep.remove(name),
        }
        Ok(())
    }

    /// Puts the host into maintenance, or takes it back.
    pub fn maintain_host(&mut self, upkeep: Option<Upkeep>) {
        self.host = upkeep;
    }

    /// The host's maintenance.
    pub fn host_upkeep(&self) -> Option<&Upkeep> {
        self.host.as_ref()
    }

    /// Every service.
    pub fn services(&self) -> Vec<Service> {
        let made = self.made.values().map(|made| &made.service);
        self.file.iter().chain(made).map(|service| Service::clone(service)).collect()
    }

    /// Why which services are in maintenance.
    pub fn in_maintenance(&self) -> BTreeMap<ServiceId, Arc<str>> {
        let listed = self.listed().into_iter();
        listed.filter_map(|listed| Some((listed.id, listed.upkeep?.reason.into()))).collect()
    }

    /// Every service, in the order of their names.
    pub fn listed(&self) -> Vec<Listed> {
        let file = self.file.iter().map(|service| (service, None));
        let made = self.made.values().map(|made| (&made.service, Some(&made.definition)));
        let mut listed: Vec<Listed> = file
            .chain(made)
            .map(|(service, definition)| Listed {
                id: ServiceId::of(service),
                definition: definition.cloned(),
                upkeep: self.upkeep.get(&Name::of(service)).or(self.host.as_ref()).cloned(),
            })
            .collect();
        listed.sort_by(|a, b| a.id.cmp(&b.id));
        listed
    }

    fn is_of_file(&self, name: &Name) -> bool {
        self.file.iter().any(|service| service.name == name.service && service.instance == name.instance)
    }

    fn made_by_api(&self, name: &Name) -> Result<&Made, Refused> {
        match self.made.get(name) {
            Some(made) => Ok(made),
            None if self.is_of_file(name) => Err(Refused::OwnedByFile(name.clone())),
            None => Err(Refused::Unknown(name.clone())),
        }
    }

    /// Who registers a service again begins without the maintenance of the one before.
    fn forget_upkeep(&mut self) {
        let known: Vec<Name> = self.file.iter().map(|service| Name::of(service)).collect();
        self.upkeep.retain(|name, _| known.contains(name) || self.made.contains_key(name));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn name(service: &str, instance: &str) -> Name {
        Name { service: ServiceName::new(service).unwrap(), instance: instance.into() }
    }

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(object) = value else { panic!("an object") };
        object
    }

    fn file(text: &str) -> Vec<Service> {
        let text = format!("[etcd]\nendpoints = [\"http://127.0.0.1:1\"]\n{text}");
        config::parse("agent.toml", &text, "host-a").unwrap().services
    }

    const WEB: &str = "[[service]]\nname = \"web\"\nport = 80\ninstance = \"web-1\"\n";

    fn upkeep(reason: &str) -> Upkeep {
        Upkeep { reason: reason.into(), since: "2026-03-01T12:30:00Z".into() }
    }

    fn weights(roster: &Roster) -> Vec<(String, u32)> {
        roster.services().into_iter().map(|service| (service.instance, service.weight)).collect()
    }

    #[test]
    fn what_the_file_has_the_api_cannot_touch() {
        let (mut roster, _) = Roster::restore(&file(WEB), Saved::default());
        let web = name("web", "web-1");
        let refused = Err(Refused::OwnedByFile(web.clone()));
        assert_eq!(roster.put(&web, object(json!({ "port": 81 }))), refused);
        assert_eq!(roster.patch(&web, &Map::new()).map(|()| true), refused);
        assert_eq!(roster.remove(&web).map(|_| true), refused);
        assert_eq!(roster.put(&name("web", "web-2"), object(json!({ "port": 81 }))), Ok(true));
    }

    #[test]
    fn a_registration_is_made_changed_and_ended() {
        let (mut roster, web) = (Roster::default(), name("web", "web-1"));
        assert_eq!(roster.put(&web, object(json!({ "port": 80, "weight": 2, "name": "web" }))), Ok(true));
        assert_eq!(roster.put(&web, object(json!({ "port": 80, "weight": 3, "zone": "a" }))), Ok(false));
        roster.patch(&web, &object(json!({ "weight": 4, "zone": null }))).unwrap();
        let service = roster.services().remove(0);
        assert_eq!((service.weight, service.zone.as_str()), (4, ""));
        assert_eq!(roster.listed()[0].definition, Some(object(json!({ "port": 80, "weight": 4 }))));
        roster.remove(&web).unwrap();
        assert_eq!(roster.remove(&web), Err(Refused::Unknown(web)));
        assert!(roster.services().is_empty());
    }

    #[test]
    fn what_is_wrong_is_refused_and_leaves_everything_as_it_was() {
        let (mut roster, web) = (Roster::default(), name("web", "web-1"));
        let places = |refused: Refused| match refused {
            Refused::Invalid(wrong) => wrong.into_iter().map(|wrong| wrong.path.join("/")).collect::<Vec<_>>(),
            other => panic!("{other}"),
        };
        assert_eq!(places(roster.put(&web, object(json!({ "port": 80, "name": "users" }))).unwrap_err()), ["name"]);
        let exec = json!({ "port": 80, "check": { "type": "exec", "command": ["true"] } });
        assert_eq!(places(roster.put(&web, object(exec)).unwrap_err()), ["check/type"]);
        assert!(roster.services().is_empty());
        roster.put(&web, object(json!({ "port": 80 }))).unwrap();
        assert_eq!(places(roster.patch(&web, &object(json!({ "port": null }))).unwrap_err()), ["port"]);
        assert_eq!(roster.services()[0].port, 80);
    }

    #[test]
    fn what_the_file_names_newly_it_takes_over() {
        let (mut roster, web) = (Roster::default(), name("web", "web-1"));
        roster.put(&web, object(json!({ "port": 80, "weight": 9 }))).unwrap();
        assert_eq!(roster.take_file(&file(WEB)), [web]);
        assert_eq!(weights(&roster), [("web-1".to_owned(), 1)]);
        assert!(roster.listed()[0].definition.is_none());
    }

    #[test]
    fn what_is_saved_comes_back_and_what_the_file_has_by_now_is_left_out() {
        let mut roster = Roster::default();
        for instance in ["web-1", "web-2"] {
            roster.put(&name("web", instance), object(json!({ "port": 80, "weight": 9 }))).unwrap();
        }
        roster.maintain(&name("web", "web-2"), Some(upkeep("disks"))).unwrap();
        let saved: Saved = serde_json::from_value(serde_json::to_value(roster.saved()).unwrap()).unwrap();
        let (restored, left_out) = Roster::restore(&[], saved.clone());
        assert_eq!((restored.saved(), left_out.len()), (roster.saved(), 0));
        let (restored, left_out) = Roster::restore(&file(WEB), saved);
        assert_eq!(weights(&restored), [("web-1".to_owned(), 1), ("web-2".to_owned(), 9)]);
        assert_eq!(left_out, ["web/web-1: the configuration file has it now"]);
        assert_eq!(restored.listed()[1].upkeep, Some(upkeep("disks")));
    }

    #[test]
    fn maintenance_is_of_an_instance_or_of_the_host_and_ends_with_the_registration() {
        let (mut roster, _) = Roster::restore(&file(WEB), Saved::default());
        let (web, users) = (name("web", "web-1"), name("users", "users-1"));
        assert_eq!(roster.maintain(&users, Some(upkeep("x"))), Err(Refused::Unknown(users.clone())));
        roster.put(&users, object(json!({ "port": 81 }))).unwrap();
        roster.maintain(&web, Some(upkeep("disks"))).unwrap();
        roster.maintain_host(Some(upkeep("move")));
        let reasons = |roster: &Roster| -> Vec<String> {
            roster.listed().into_iter().map(|listed| listed.upkeep.map_or_else(String::new, |up| up.reason)).collect()
        };
        assert_eq!(reasons(&roster), ["move", "disks"], "users, web: its own reason counts");
        roster.maintain_host(None);
        assert_eq!(reasons(&roster), ["", "disks"]);
        roster.take_file(&[]);
        roster.take_file(&file(WEB));
        assert_eq!(reasons(&roster), ["", ""]);
    }
}
