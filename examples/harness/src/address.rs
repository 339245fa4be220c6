//! Addresses of databases and of services.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result};

/// `scheme://user:password@host` with stars for the password.
#[must_use]
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let authority = rest.find(['/', '?']).unwrap_or(rest.len());
    let user_end = rest[..authority].rfind('@');
    let password = user_end.and_then(|end| rest[..end].find(':').map(|colon| (colon, end)));
    match password {
        Some((colon, end)) => format!("{scheme}://{}:***{}", &rest[..colon], &rest[end..]),
        None => url.to_owned(),
    }
}

/// `127.0.0.1` with a port to listen on, now and after a restart. It lies below those that the system gives to outgoing connections, which could
/// take it while the process that listens there is down.
///
/// # Errors
/// Where no port is free.
pub fn to_listen_on() -> Result<String> {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let mut candidates = (0..1_000).map(|_| rand::random_range(10_000..32_000));
    let port = candidates.find(free).context("no port is free")?;
    Ok(format!("127.0.0.1:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let cases = [
            ("postgres://a:b@h:1/d", "postgres://a:***@h:1/d"),
            ("mysql://a:b:@c@h/d?x=y@z", "mysql://a:***@h/d?x=y@z"),
            ("postgres://a@h/d", "postgres://a@h/d"),
            ("sqlite:/a:b@c", "sqlite:/a:b@c"),
        ];
        for (url, shown) in cases {
            assert_eq!(without_password(url), shown);
        }
    }
}
