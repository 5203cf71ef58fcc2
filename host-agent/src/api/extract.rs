//! What a request carries: its body, its query and its path, each refused with a problem that says what is wrong.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, Method, header, request::Parts},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::{
    problem::{Fault, Kind},
    types::FieldError,
};

/// The largest body. A node may take 64 KiB in the registry; as JSON it may be a little longer.
const BODY_BYTES: usize = 128 * 1024;
/// How long a body may take to come.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// A JSON body. Without any it is what `{}` stands for.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _: &S) -> Result<Self, Fault> {
        let (parts, body) = request.into_parts();
        let bytes = read(body).await?;
        // Browsers send a POST without asking first, unless its type is another than that of forms: without this, any
        // web page could make one. (They ask before every other method that changes something.)
        if (!bytes.is_empty() || parts.method == Method::POST) && !is_json(&parts.headers) {
            return Err(Fault::new(Kind::WrongContentType, "send the header content-type: application/json"));
        }
        decode(if bytes.is_empty() { b"{}" } else { &bytes }).map(Self)
    }
}

async fn read(body: Body) -> Result<Vec<u8>, Fault> {
    let collected = tokio::time::timeout(BODY_LIMIT, Limited::new(body, BODY_BYTES).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Fault::new(Kind::TooLarge, format!("a body may have {BODY_BYTES} bytes")))
        }
        Ok(Err(error)) => Err(Fault::new(Kind::TooSlow, format!("the body broke off: {error}"))),
        Err(_) => Err(Fault::new(Kind::TooSlow, format!("the body did not come within {BODY_LIMIT:?}"))),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    ["application/json", "application/merge-patch+json"].iter().any(|known| essence.eq_ignore_ascii_case(known))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let decoded = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let (pointer, detail) = (pointer(error.path()), error.inner().to_string());
        Fault::invalid(vec![FieldError { pointer, detail }])
    })?;
    deserializer.end().map_err(|error| Fault::invalid_at("", error.to_string()))?;
    Ok(decoded)
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let tokens = path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Map { key } => Some(pointer_token(key)),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    tokens.fold(String::new(), |pointer, token| format!("{pointer}/{token}"))
}

/// One token of a JSON pointer.
pub(super) fn pointer_token(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// The query's parameters.
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let query = Query::from_request_parts(parts, state).await;
        query.map(|Query(query)| Self(query)).map_err(|error| Fault::new(Kind::BadParameters, error.body_text()))
    }
}

/// The path's parts, percent-decoded.
pub struct PathParts<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for PathParts<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(path)| Self(path)).map_err(|error| Fault::new(Kind::BadParameters, error.body_text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::LockRequest;

    fn refusal(body: &str) -> (String, String) {
        let error = decode::<LockRequest>(body.as_bytes()).unwrap_err().problem().errors.remove(0);
        (error.pointer, error.detail)
    }

    #[test]
    fn a_wrong_body_is_refused_with_the_place_of_what_is_wrong() {
        assert_eq!(refusal(r#"{"ttl": 5}"#).0, "/ttl");
        let (pointer, detail) = refusal(r#"{"tll": "5s"}"#);
        assert!(pointer == "/tll" && detail.contains("unknown field `tll`, expected `ttl` or `wait`"), "{detail}");
        assert_eq!(refusal("{} {}").0, "");
    }

    #[test]
    fn names_in_pointers_are_escaped() {
        assert_eq!(pointer_token("a/b~c"), "a~1b~0c");
    }

    #[test]
    fn json_is_told_by_its_type_whatever_follows_it() {
        let is = |value: &str| is_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]));
        assert!(is("application/json") && is("Application/JSON; charset=utf-8") && is("application/merge-patch+json"));
        assert!(!is("text/plain") && !is("application/x-www-form-urlencoded") && !is_json(&HeaderMap::new()));
    }
}
