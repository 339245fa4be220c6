//! The wire types of `unanimity.v1`, generated from `proto/unanimity/v1/*.proto`, and nothing else.
//!
//! What a message means, and in which order messages may come, is told in `docs/protocol.md`.

/// Package `unanimity.v1`.
#[allow(
    missing_docs,
    reason = "the comments stand in the .proto files; oneof modules have none"
)]
#[allow(clippy::all, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("unanimity.v1");
}

/// The encoded `FileDescriptorSet` of the package, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The version that [`v1::Hello`] carries.
pub const PROTOCOL_VERSION: u32 = 1;

/// The domain of every `google.rpc.ErrorInfo` that we send.
pub const ERROR_DOMAIN: &str = "unanimity";
