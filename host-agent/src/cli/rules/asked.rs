//! A request that is described on the command line.

use clap::Args;
use serde::Serialize;
use waypost_policy::RequestView;

/// The request.
#[derive(Clone, Debug, Args, Serialize)]
pub(super) struct Asked {
    /// Its path, with the query
    #[arg(long, value_name = "PATH", default_value = "/", value_parser = path)]
    path: String,
    /// Its method
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// A header of it; may be repeated
    #[arg(long = "header", value_name = "NAME:VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The address that it comes from
    #[arg(long, value_name = "ADDRESS")]
    source: Option<String>,
}

fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err("it begins with /, such as /api/orders?x=1".to_owned())
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once(':').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or_else(|| "write NAME:VALUE, such as x-user:7".to_owned())?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

/// The request, for a host if that matters.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Request {
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(flatten)]
    asked: Asked,
}

impl Request {
    pub(super) fn new(host: Option<String>, asked: Asked) -> Self {
        Self { host, asked }
    }

    /// As people write it.
    pub(super) fn shown(&self) -> String {
        let Asked { path, method, headers, source } = &self.asked;
        let mut shown = format!("{method} {}{path}", self.host.as_deref().unwrap_or_default());
        headers.iter().for_each(|(name, value)| shown.push_str(&format!(", {name}: {value}")));
        source.iter().for_each(|source| shown.push_str(&format!(", from {source}")));
        shown
    }
}

impl RequestView for Request {
    fn host(&mut self) -> Option<Vec<u8>> {
        self.host.as_ref().map(|host| host.clone().into_bytes())
    }

    fn path(&mut self) -> Option<Vec<u8>> {
        Some(self.asked.path.clone().into_bytes())
    }

    fn method(&mut self) -> Option<Vec<u8>> {
        Some(self.asked.method.clone().into_bytes())
    }

    fn header(&mut self, name: &str) -> Option<Vec<u8>> {
        let found = self.asked.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone().into_bytes())
    }

    fn source(&mut self) -> Option<Vec<u8>> {
        self.asked.source.as_ref().map(|source| source.clone().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        asked: Asked,
    }

    #[test]
    fn a_request_is_what_the_command_line_says() {
        let parsed = |args: &[&str]| Line::try_parse_from(std::iter::once(&"x").chain(args)).map(|line| line.asked);
        let asked =
            parsed(&["--path", "/a?b=1", "--header", "X-User: u:v", "--header", "empty:", "--source", "10.0.0.1"]);
        let mut request = Request::new(Some("web".into()), asked.unwrap());
        assert_eq!(request.shown(), "GET web/a?b=1, x-user: u:v, empty: , from 10.0.0.1");
        assert_eq!(request.header("x-user"), Some(b"u:v".to_vec()));
        assert_eq!((request.header("empty"), request.header("other")), (Some(Vec::new()), None));
        for wrong in [["--path", "a"], ["--header", "x"], ["--header", ":x"]] {
            assert!(parsed(&wrong).is_err(), "{wrong:?}");
        }
    }
}
