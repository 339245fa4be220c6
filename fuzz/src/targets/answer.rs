//! Answers of services over HTTP.

use unanimity_participant::fuzzing::answer;

use crate::Target;

pub(super) const ANSWER: Target = Target {
    name: "answer",
    promise: "only 200 and 201 with JSON, and 204, are taken for done; and what is told to people is one short line",
    check,
    seeds,
};

struct Given<'a> {
    status: u16,
    kind: Option<&'static str>,
    retry_after: bool,
    location: bool,
    body: &'a [u8],
}

const KINDS: [Option<&str>; 4] = [
    None,
    Some("application/json"),
    Some(" Application/JSON ; charset=utf-8"),
    Some("text/html"),
];

/// Reads the status, the kind of content, which headers are there, and the body.
fn given(bytes: &[u8]) -> Option<Given<'_>> {
    let ([low, high, kind, headers], body) = bytes.split_first_chunk()?;
    Some(Given {
        status: u16::from_le_bytes([*low, *high]),
        kind: KINDS[usize::from(*kind) % KINDS.len()],
        retry_after: headers & 1 != 0,
        location: headers & 2 != 0,
        body,
    })
}

fn check(bytes: &[u8]) {
    let Some(given) = given(bytes) else {
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
    let kind = given.kind.expect("it says what it is").to_lowercase();
    assert!(kind.trim().starts_with("application/json"), "{kind}");
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    let told = json(result.as_bytes());
    assert!(told.is_some(), "{result:?} is no JSON");
    assert_eq!(told, json(given.body), "the result is another");
}

/// Any bytes that a header takes are the value of those that are there.
fn headers(given: &Given<'_>) -> http::HeaderMap {
    let some = given.body.get(..8).unwrap_or(b"7");
    let lines = [
        (http::header::CONTENT_TYPE, given.kind.map(str::as_bytes)),
        (http::header::RETRY_AFTER, given.retry_after.then_some(some)),
        (http::header::LOCATION, given.location.then_some(some)),
    ];
    let value = |(name, bytes): (_, Option<&[u8]>)| {
        let value = http::HeaderValue::from_bytes(bytes?).ok()?;
        Some((name, value))
    };
    lines.into_iter().filter_map(value).collect()
}

fn seeds() -> Vec<Vec<u8>> {
    let seed = |(status, kind, headers, body): (u16, u8, u8, &str)| {
        let [low, high] = status.to_le_bytes();
        [&[low, high, kind, headers], body.as_bytes()].concat()
    };
    let answers = [
        (200, 1, 0, r#"{"id":7,"rows":[1.5,null]}"#),
        (201, 2, 0, " null "),
        (200, 3, 0, "{}"),
        (200, 0, 0, "{}"),
        (204, 0, 0, ""),
        (302, 3, 2, "https://login.example/"),
        (422, 1, 0, r#"{"message":"no such card"}"#),
        (503, 3, 1, "<h1>Try again</h1>"),
        (500, 3, 0, "\u{7f}\r\n\u{85}"),
    ];
    answers.map(seed).into()
}
