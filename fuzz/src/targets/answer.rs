//! Answers of services over HTTP.

use arbitrary::{Arbitrary, Unstructured};
use unanimity_participant::fuzzing::answer;

use crate::Target;

pub(super) const ANSWER: Target = Target {
    name: "answer",
    promise: "only 200 and 201 with JSON, and 204, are taken for done; and what is told to people is one short line",
    check,
    seeds,
};

#[derive(Arbitrary, Debug)]
struct Given<'a> {
    status: u16,
    content_type: Kind,
    retry_after: Option<&'a [u8]>,
    location: Option<&'a [u8]>,
    body: &'a [u8],
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Kind {
    None,
    Json,
    JsonWithCharset,
    Html,
}

fn check(bytes: &[u8]) {
    let Ok(given) = Given::arbitrary_take_rest(Unstructured::new(bytes)) else {
        return;
    };
    let Ok(status) = http::StatusCode::from_u16(given.status) else {
        return;
    };
    let (meaning, text) = answer(status, &headers(&given), given.body.to_vec());
    if meaning == "done" {
        is_done(&given, &text);
    } else {
        assert!(text.chars().count() < 1_000, "people are told too much");
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}

fn is_done(given: &Given<'_>, result: &str) {
    if given.status == 204 {
        assert_eq!(result, "");
        return;
    }
    assert!(matches!(given.status, 200 | 201), "{}", given.status);
    assert!(matches!(
        given.content_type,
        Kind::Json | Kind::JsonWithCharset
    ));
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    let told = json(result.as_bytes());
    assert!(told.is_some(), "{result:?} is no JSON");
    assert_eq!(told, json(given.body), "the result is another");
}

fn headers(given: &Given<'_>) -> http::HeaderMap {
    let kind = match given.content_type {
        Kind::None => None,
        Kind::Json => Some(&b"application/json"[..]),
        Kind::JsonWithCharset => Some(&b" Application/JSON ; charset=utf-8"[..]),
        Kind::Html => Some(&b"text/html"[..]),
    };
    let lines = [
        (http::header::CONTENT_TYPE, kind),
        (http::header::RETRY_AFTER, given.retry_after),
        (http::header::LOCATION, given.location),
    ];
    let value = |(name, bytes): (_, Option<&[u8]>)| {
        let value = http::HeaderValue::from_bytes(bytes?).ok()?;
        Some((name, value))
    };
    lines.into_iter().filter_map(value).collect()
}

fn seeds() -> Vec<Vec<u8>> {
    let seed = |status: u16, kind: u8, body: &str| {
        let mut bytes = status.to_le_bytes().to_vec();
        bytes.extend([0, 0, 0, kind.wrapping_mul(64), 0, 0]);
        bytes.extend(body.bytes());
        bytes
    };
    vec![
        seed(200, 1, r#"{"id":7,"rows":[1.5,null]}"#),
        seed(422, 1, r#"{"message":"no such card"}"#),
        seed(503, 3, "<h1>Try again</h1>"),
        seed(204, 0, ""),
    ]
}
