//! References in sagas.

use unanimity_engine::Reference;

use crate::Target;

pub(super) const REFERENCE: Target = Target {
    name: "reference",
    promise: "what is taken for a reference is written as it was read, and short",
    check,
    seeds,
};

fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string(), text, "it is written otherwise");
        assert!(text.len() <= 256, "it is {} bytes long", text.len());
    }
}

fn seeds() -> Vec<Vec<u8>> {
    ["transaction.id", "order.id", "order.rows.0.id"]
        .map(|text| text.into())
        .into()
}
