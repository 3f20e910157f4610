//! A head that is taken has one authority, and what goes to the origin reads the same.
#![no_main]

use egret_core::wire::http::{HeadLimits, Onward, RequestHead, USUAL_FIELDS};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 64 << 10;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(head)) = RequestHead::look(bytes, LIMIT) else { return };
    let Ok(authority) = head.authority() else { return };
    let sent = head.for_origin(bytes, b"", Onward::Close);
    // It may have a few fields more.
    let limits = HeadLimits { bytes: 2 * LIMIT, fields: 2 * USUAL_FIELDS };
    let Ok(Some(again)) = RequestHead::look(&sent, limits) else {
        // CONNECT has no origin-form; it is never sent on.
        assert_eq!(&*head.method, "CONNECT");
        return;
    };
    assert_eq!(again.len, sent.len());
    assert_eq!(again.body, head.body);
    assert_eq!(again.authority().map(|a| &a.host), Ok(&authority.host));
});
