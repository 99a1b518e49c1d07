//! Writing a status.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};

use super::{QUOTA_FAILURE, RETRY_INFO};

/// The status of a request that a limit rejected.
pub(crate) struct RpcStatus<'a> {
    pub(crate) code: u8,
    pub(crate) message: &'a str,
    pub(crate) retry_delay: Option<Duration>,
    /// Which limit it is.
    pub(crate) subject: &'a str,
}

impl RpcStatus<'_> {
    /// The value of the header, without padding, as gRPC sends it.
    pub(crate) fn to_header(&self) -> String {
        STANDARD_NO_PAD.encode(self.encode())
    }

    fn encode(&self) -> Vec<u8> {
        let mut status = Vec::new();
        put_number(&mut status, 1, self.code.into());
        put_bytes(&mut status, 2, self.message.as_bytes());
        if let Some(retry_delay) = self.retry_delay {
            let mut delay = Vec::new();
            put_number(&mut delay, 1, retry_delay.as_secs());
            put_number(&mut delay, 2, retry_delay.subsec_nanos().into());
            let mut retry_info = Vec::new();
            put_bytes(&mut retry_info, 1, &delay);
            put_detail(&mut status, RETRY_INFO, &retry_info);
        }
        let mut violation = Vec::new();
        put_bytes(&mut violation, 1, self.subject.as_bytes());
        put_bytes(&mut violation, 2, self.message.as_bytes());
        let mut quota_failure = Vec::new();
        put_bytes(&mut quota_failure, 1, &violation);
        put_detail(&mut status, QUOTA_FAILURE, &quota_failure);
        status
    }
}

fn put_detail(to: &mut Vec<u8>, name: &str, value: &[u8]) {
    let mut any = Vec::new();
    put_bytes(
        &mut any,
        1,
        format!("type.googleapis.com/{name}").as_bytes(),
    );
    put_bytes(&mut any, 2, value);
    put_bytes(to, 3, &any);
}

/// Wire type 0. Zero is the default and is not written.
fn put_number(to: &mut Vec<u8>, field: u8, value: u64) {
    if value > 0 {
        to.push(field << 3);
        put_varint(to, value);
    }
}

/// Wire type 2.
fn put_bytes(to: &mut Vec<u8>, field: u8, value: &[u8]) {
    to.push(field << 3 | 2);
    put_varint(to, value.len() as u64);
    to.extend_from_slice(value);
}

fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}
