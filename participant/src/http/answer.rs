//! What an answer of the service means. The table in `docs/http.md` is this module in words.
//!
//! Anybody can stand between the agent and the service: a proxy that shows a login page, or that gives up on a request which the service
//! carries out. So what could come from such a one, and could come after the service has acted, is [`Answer::Unknown`].

use std::time::Duration;

use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_TYPE, LOCATION, RETRY_AFTER},
};
use serde::Deserialize;
use serde_json::Value;

use crate::participant::STEP_RESULT_BYTES;

/// How much of a text of the service is passed on, in characters.
const TEXT_CHARACTERS: usize = 200;

/// What became of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is done, now or before, with this JSON; empty for none.
    Done(String),
    /// The service's own no, for good: nothing is done under this key.
    Refused(String),
    /// It is at work still.
    Working(String),
    /// This request had no effect; the next may.
    NotTaken(String),
    /// This request had no effect, and the next won't either before somebody corrects the service or the configuration.
    Mistaken(String),
    /// Whether it had an effect is not known.
    Unknown(String),
}

/// What was read of an answer's body.
pub(crate) enum Body {
    Whole(Vec<u8>),
    /// More than [`STEP_RESULT_BYTES`].
    TooLarge,
    /// It broke off.
    Broken(String),
}

/// Reads an answer's meaning. `endpoint` is for texts.
pub(crate) fn meaning(
    endpoint: &str,
    status: StatusCode,
    headers: &HeaderMap,
    body: Body,
) -> Answer {
    let text = || told(endpoint, status, headers, &body);
    match status.as_u16() {
        200 | 201 => result(endpoint, status, headers, body),
        204 => Answer::Done(String::new()),
        202 => Answer::Working(text()),
        300..=399 => Answer::Unknown(format!(
            "{endpoint} answers {status} and redirects{}, which is not followed",
            header(headers, LOCATION).map_or(String::new(), |to| format!(" to {to}"))
        )),
        422 => Answer::Refused(words(headers, &body).unwrap_or_else(text)),
        429 => Answer::NotTaken(text()),
        // Whoever names a time to come back has turned the request away. Without it, some proxies say 503 when the service
        // broke off in the middle.
        503 if headers.contains_key(RETRY_AFTER) => Answer::NotTaken(text()),
        // Too slow, too early, and "one with this key is at work".
        408 | 409 | 425 => Answer::Unknown(text()),
        400..=499 => Answer::Mistaken(text()),
        _ => Answer::Unknown(text()),
    }
}

fn result(endpoint: &str, status: StatusCode, headers: &HeaderMap, body: Body) -> Answer {
    if !is_json(headers) {
        let kind = header(headers, CONTENT_TYPE).unwrap_or_else(|| "no content type".into());
        return Answer::Unknown(format!(
            "{endpoint} answers {status} with {kind} where application/json is expected, so it is not taken for done"
        ));
    }
    let bytes = match body {
        Body::Whole(bytes) => bytes,
        Body::TooLarge => {
            return Answer::Unknown(format!(
                "{endpoint} answers {status} with more than {STEP_RESULT_BYTES} bytes, which can't be taken; answer with less"
            ));
        }
        Body::Broken(problem) => {
            return Answer::Unknown(format!(
                "{endpoint} answers {status}, and its answer breaks off: {problem}"
            ));
        }
    };
    match String::from_utf8(bytes) {
        Ok(text) if serde_json::from_str::<Value>(&text).is_ok() => {
            Answer::Done(text.trim().to_owned())
        }
        _ => Answer::Unknown(format!(
            "{endpoint} answers {status} with what is no JSON, so it is not taken for done"
        )),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    kind.and_then(|kind| kind.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// For people: which endpoint, the status, when to come back, and what the service says.
fn told(endpoint: &str, status: StatusCode, headers: &HeaderMap, body: &Body) -> String {
    let mut text = format!("{endpoint} answers {status}");
    if let Some(later) = header(headers, RETRY_AFTER) {
        text += &format!(" (to be tried again after: {later})");
    }
    if let Some(words) = words(headers, body) {
        text += ": ";
        text += &words;
    }
    text
}

/// `message` of a JSON object, or else the text itself.
fn words(headers: &HeaderMap, body: &Body) -> Option<String> {
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    let Body::Whole(bytes) = body else {
        return None;
    };
    let message = is_json(headers)
        .then(|| serde_json::from_slice::<Message>(bytes).ok())
        .flatten();
    let text = message.map_or_else(
        || String::from_utf8_lossy(bytes).into_owned(),
        |m| m.message,
    );
    let text = clean(&text);
    (!text.is_empty()).then_some(text)
}

fn header(headers: &HeaderMap, name: http::HeaderName) -> Option<String> {
    let value = headers.get(name)?;
    Some(clean(&String::from_utf8_lossy(value.as_bytes())))
}

/// What a peer sent, made fit for logs and terminals: one line, no control characters, not long.
pub(super) fn clean(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let mut words: String = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = words.char_indices().nth(TEXT_CHARACTERS) {
        words.truncate(end);
        words.push('…');
    }
    words
}

/// For texts: `POST /charge`.
pub(super) fn too_slow(endpoint: &str, limit: Duration) -> Answer {
    Answer::Unknown(format!("{endpoint} gives no answer within {limit:?}"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn answer(status: u16, headers: &[(http::HeaderName, &'static str)], body: &str) -> Answer {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect();
        let status = StatusCode::from_u16(status).expect("a status");
        meaning("POST /x", status, &headers, Body::Whole(body.into()))
    }

    const JSON: (http::HeaderName, &str) = (CONTENT_TYPE, "application/json; charset=utf-8");
    const HTML: (http::HeaderName, &str) = (CONTENT_TYPE, "text/html");

    #[test]
    fn only_json_or_an_empty_answer_is_done() {
        assert_eq!(
            answer(200, &[JSON], " {\"a\":18446744073709551617}\n"),
            Answer::Done("{\"a\":18446744073709551617}".into())
        );
        assert_eq!(answer(201, &[JSON], "null"), Answer::Done("null".into()));
        assert_eq!(answer(204, &[], ""), Answer::Done(String::new()));
        for unknown in [
            answer(200, &[HTML], "<h1>Log in</h1>"),
            answer(200, &[], "{}"),
            answer(200, &[], ""),
            answer(200, &[JSON], ""),
            answer(200, &[JSON], "<h1>Log in</h1>"),
            answer(200, &[JSON], "{} {}"),
            answer(200, &[JSON], &"[".repeat(60_000)),
            answer(200, &[JSON], &"{\"a\":".repeat(10_000)),
            answer(200, &[JSON], r#""\ud800""#),
            answer(203, &[JSON], "{}"),
            answer(206, &[JSON], "{}"),
        ] {
            assert!(matches!(unknown, Answer::Unknown(_)), "{unknown:?}");
        }
    }

    #[test]
    fn each_status_means_what_the_table_says() {
        let kind = |status, headers: &[_]| match answer(status, headers, "x") {
            Answer::Done(_) => "done",
            Answer::Refused(_) => "refused",
            Answer::Working(_) => "working",
            Answer::NotTaken(_) => "not taken",
            Answer::Mistaken(_) => "mistaken",
            Answer::Unknown(_) => "unknown",
        };
        for (statuses, expected) in [
            (&[202][..], "working"),
            (&[422], "refused"),
            (&[429], "not taken"),
            (&[400, 401, 403, 404, 405, 410, 413, 415, 451], "mistaken"),
            (
                &[
                    301, 302, 303, 304, 307, 308, 408, 409, 425, 500, 501, 502, 503, 504, 599,
                ],
                "unknown",
            ),
        ] {
            for status in statuses {
                assert_eq!(kind(*status, &[]), expected, "{status}");
            }
        }
        assert_eq!(kind(503, &[(RETRY_AFTER, "3")]), "not taken");
    }

    #[test]
    fn texts_tell_the_endpoint_and_what_the_service_says_in_one_short_line() {
        assert_eq!(
            answer(422, &[JSON], r#"{"message":"card\nexpired","more":1}"#),
            Answer::Refused("card expired".into())
        );
        assert_eq!(
            answer(422, &[], ""),
            Answer::Refused("POST /x answers 422 Unprocessable Entity".into())
        );
        assert_eq!(
            answer(404, &[HTML], "<b>\u{1b}[31mno\u{7}</b>"),
            Answer::Mistaken("POST /x answers 404 Not Found: <b> [31mno </b>".into())
        );
        assert_eq!(
            answer(302, &[(LOCATION, "http://elsewhere/")], ""),
            Answer::Unknown(
                "POST /x answers 302 Found and redirects to http://elsewhere/, which is not followed"
                    .into()
            )
        );
        assert_eq!(
            answer(429, &[(RETRY_AFTER, "7")], ""),
            Answer::NotTaken(
                "POST /x answers 429 Too Many Requests (to be tried again after: 7)".into()
            )
        );
        let Answer::Unknown(text) = answer(500, &[], &"é".repeat(1000)) else {
            panic!("not unknown")
        };
        assert_eq!(text.matches('é').count(), TEXT_CHARACTERS);
    }
}
