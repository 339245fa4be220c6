//! How a transaction travels with a request.

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::metadata::MetadataMap;

use super::EnlistError;
use crate::wire;

/// The header, or gRPC metadata key, in which a transaction's id travels.
pub const TRANSACTION_HEADER: HeaderName = HeaderName::from_static("unanimity-transaction");

/// W3C trace context.
const TRACEPARENT_HEADER: HeaderName = HeaderName::from_static("traceparent");

/// What a request carries of the transaction that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionContext {
    /// The transaction's id, checked to be of the right form.
    pub transaction: String,
    /// W3C trace context, as it came.
    pub traceparent: Option<String>,
}

impl TransactionContext {
    /// Reads it from the headers of a request; `None` where the request belongs to no transaction.
    ///
    /// # Errors
    /// [`EnlistError::Malformed`] where the header is there, but holds no id, or is there twice: to go on without a transaction would be wrong.
    pub fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, EnlistError> {
        let mut given = headers.get_all(&TRANSACTION_HEADER).iter();
        let Some(first) = given.next() else {
            return Ok(None);
        };
        let transaction = String::from_utf8_lossy(first.as_bytes()).into_owned();
        if given.next().is_some() || !wire::is_transaction_id(&transaction) {
            return Err(EnlistError::Malformed(transaction));
        }
        let traceparent = headers
            .get(&TRACEPARENT_HEADER)
            .and_then(|value| value.to_str().ok())
            .map(Into::into);
        Ok(Some(Self {
            transaction,
            traceparent,
        }))
    }

    /// Reads it from the metadata of a gRPC request.
    ///
    /// # Errors
    /// As [`Self::from_headers`].
    pub fn from_metadata(metadata: &MetadataMap) -> Result<Option<Self>, EnlistError> {
        Self::from_headers(metadata.as_ref())
    }

    /// Writes it into the headers of a request to the next service.
    ///
    /// # Errors
    /// Where the id, or the trace context, can't be a header's value.
    pub fn write_headers(&self, headers: &mut HeaderMap) -> Result<(), EnlistError> {
        let value = |text: &str| {
            HeaderValue::from_str(text).map_err(|_| EnlistError::Malformed(text.into()))
        };
        headers.insert(TRANSACTION_HEADER, value(&self.transaction)?);
        if let Some(traceparent) = &self.traceparent {
            headers.insert(TRACEPARENT_HEADER, value(traceparent)?);
        }
        Ok(())
    }

    /// Writes it into the metadata of a gRPC request to the next service.
    ///
    /// # Errors
    /// As [`Self::write_headers`].
    pub fn write_metadata(&self, metadata: &mut MetadataMap) -> Result<(), EnlistError> {
        self.write_headers(metadata.as_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &str)]) -> Result<Option<TransactionContext>, EnlistError> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        TransactionContext::from_headers(&map)
    }

    #[test]
    fn the_transaction_travels_from_request_to_request() {
        let context = read(&[
            ("unanimity-transaction", "u1.0a.1.ff"),
            ("traceparent", "00-a-b-01"),
        ])
        .expect("good")
        .expect("one");
        assert_eq!(
            (context.transaction.as_str(), context.traceparent.as_deref()),
            ("u1.0a.1.ff", Some("00-a-b-01"))
        );
        let mut metadata = MetadataMap::new();
        context.write_metadata(&mut metadata).expect("written");
        assert_eq!(
            TransactionContext::from_metadata(&metadata),
            Ok(Some(context))
        );
    }

    #[test]
    fn no_header_is_no_transaction_but_a_bad_one_is_an_error() {
        assert_eq!(read(&[("traceparent", "00-a-b-01")]), Ok(None));
        for bad in ["", "U1.0", "u1 0", "u1.0\u{e9}"] {
            assert!(
                matches!(
                    read(&[("unanimity-transaction", bad)]),
                    Err(EnlistError::Malformed(_))
                ),
                "{bad:?}"
            );
        }
        let twice = read(&[
            ("unanimity-transaction", "u1.a"),
            ("unanimity-transaction", "u1.b"),
        ]);
        assert!(matches!(twice, Err(EnlistError::Malformed(_))), "{twice:?}");
    }
}
