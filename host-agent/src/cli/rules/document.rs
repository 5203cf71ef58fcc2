//! A document, and where it comes from.

use std::{convert::Infallible, fs, io::Read as _, str::FromStr};

use anyhow::Context as _;
use waypost_policy::{Policy, Problems, Route};

use crate::rules::RuleKind;

/// A document without anything wrong.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Document {
    Policy(Box<Policy>),
    Route(Box<Route>),
}

impl Document {
    /// Reads the document of a service or a route.
    pub(super) fn parse(kind: RuleKind, name: &str, text: &[u8]) -> Result<Self, Problems> {
        match kind {
            RuleKind::Policies => Policy::parse(text).map(Box::new).map(Self::Policy),
            RuleKind::Routes => Route::parse(name, text).map(Box::new).map(Self::Route),
        }
    }
}

/// Where the command line says that a document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Given {
    Stdin,
    File(String),
    Inline(String),
}

impl FromStr for Given {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "-" => Self::Stdin,
            text if text.trim_start().starts_with('{') => Self::Inline(text.to_owned()),
            text => Self::File(text.to_owned()),
        })
    }
}

impl Given {
    pub(super) fn read(&self) -> anyhow::Result<String> {
        match self {
            Self::Stdin => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
                Ok(text)
            }
            Self::File(path) => {
                fs::read_to_string(path).with_context(|| format!("cannot read {path}, and it is no JSON object either"))
            }
            Self::Inline(text) => Ok(text.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_like_an_object_is_the_document_itself() {
        let given = |text: &str| text.parse::<Given>().unwrap();
        assert_eq!(given(" {}"), Given::Inline(" {}".into()));
        assert_eq!(given("-"), Given::Stdin);
        assert_eq!(given("orders.json"), Given::File("orders.json".into()));
        let error = given("/nowhere/orders.json").read().unwrap_err();
        assert!(error.to_string().contains("/nowhere/orders.json"), "{error}");
    }
}
