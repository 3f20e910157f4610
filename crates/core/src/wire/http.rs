//! Heads and bodies of HTTP/1 messages, read so that no second reader can read them differently.
//!
//! `httparse` finds the fields; every leniency it has is closed here before anything is believed. RFC 9112 is the
//! grammar, RFC 9110 the meaning.

mod body;
mod fields;
mod head_end;
mod request;
mod response;

use crate::outcome::Reason;
pub use body::Body;
pub use fields::{BodyLength, HeadLimits, Onward, Overrides, USUAL_FIELDS, Upgrade, is_token_byte};
use head_end::HeadEnd;
pub use request::{Authority, HostField, RequestHead, RequestTarget};
pub use response::{AnswerLength, ResponseHead};

/// Reads a growing head, looking at each byte once however they arrive.
#[derive(Debug, Default)]
pub struct HeadReader(HeadEnd);

impl HeadReader {
    /// As [`RequestHead::look`], for bytes that begin with those of earlier calls.
    ///
    /// # Errors
    /// As [`RequestHead::look`].
    pub fn look(&mut self, raw: &[u8], limits: HeadLimits) -> Result<Option<RequestHead>, Reason> {
        let Some(head) = self.0.find(raw, limits.bytes)? else { return Ok(None) };
        RequestHead::read(head, limits.fields).map(Some)
    }

    /// The head of a response. `None` for "need more".
    ///
    /// # Errors
    /// [`Reason::BadAnswer`] for bytes that begin no HTTP/1 response, or past `limits`.
    pub fn response(&mut self, raw: &[u8], limits: HeadLimits) -> Result<Option<ResponseHead>, Reason> {
        let Some(head) = self.0.find(raw, limits.bytes).map_err(|_| Reason::BadAnswer)? else { return Ok(None) };
        ResponseHead::read(head, limits.fields).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(raw: &str) -> Result<Option<RequestHead>, Reason> {
        RequestHead::look(raw.as_bytes(), 1 << 16)
    }

    #[track_caller]
    fn allowed(raw: &str, authority: &str) -> RequestHead {
        let head = look(raw).unwrap().expect("the head is whole");
        assert_eq!(head.authority().map(ToString::to_string), Ok(authority.to_owned()), "{raw:?}");
        for end in 0..raw.len() {
            assert_eq!(look(&raw[..end]), Ok(None), "prefix {:?}", &raw[..end]);
        }
        head
    }

    #[track_caller]
    fn refused(raw: &str, reason: Reason) {
        let got = look(raw).and_then(|head| head.expect("the head is whole").authority().cloned());
        assert_eq!(got, Err(reason), "{raw:?}");
    }

    #[test]
    fn one_host_is_read() {
        allowed("GET / HTTP/1.1\r\nHost: A.Example\r\n\r\n", "a.example");
        allowed("GET / HTTP/1.1\r\nHOST:\ta.example:8080 \r\n\r\n", "a.example:8080");
        allowed("GET http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example");
        allowed("GET http://a.example:80?q HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example:80");
        allowed("GET http://a.example/ HTTP/1.0\r\n\r\n", "a.example");
        allowed("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", "a.example:443");
        allowed("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example:443");
        allowed("CONNECT a.example:443 HTTP/1.0\r\n\r\n", "a.example:443");
        allowed("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n", "[::1]:443");
        allowed("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example");
    }

    #[test]
    fn a_target_with_a_host_needs_no_other() {
        for host in ["", "Host:\r\n", "Host: b\r\n", "Host: a:444\r\n", "Host: a b\r\n"] {
            allowed(&format!("CONNECT a:443 HTTP/1.1\r\n{host}\r\n"), "a:443");
        }
        for host in ["Host:\r\n", "Host: b\r\n", "Host: a:81\r\n", "Host: u:p@a\r\n"] {
            for userinfo in ["", "u@", "u:p%40@", ":@"] {
                let raw = format!("GET http://{userinfo}a/x HTTP/1.1\r\n{host}Authorization: y\r\n\r\n");
                let head = allowed(&raw, "a");
                let sent = head.for_origin(raw.as_bytes(), b"", Onward::Stay);
                assert_eq!(sent, b"GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: y\r\n\r\n", "{raw}");
            }
        }
    }

    #[test]
    fn an_upgrade_is_an_offer() {
        let with = |method: &str, fields: &str| {
            let raw = format!("{method} / HTTP/1.1\r\nHost: a\r\n{fields}A: b\r\n\r\n");
            let head = look(&raw).unwrap().unwrap();
            (head.upgrade, String::from_utf8(head.for_origin(raw.as_bytes(), b"", Onward::Stay)).unwrap())
        };
        let plain = |method: &str| format!("{method} / HTTP/1.1\r\nHost: a\r\nA: b\r\n\r\n");
        for fields in [
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
            "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
            "Upgrade: websocket, h2c\r\n",
            "Upgrade: websocket\r\nUpgrade: websocket\r\n",
            "Upgrade:\r\n",
        ] {
            assert_eq!(with("GET", fields), (None, plain("GET")), "{fields}");
        }
        let websocket = "Connection: Upgrade\r\nUpgrade: WebSocket\r\n";
        assert_eq!(with("GET", websocket), (Some(Upgrade::WebSocket), plain("GET")));
        assert_eq!(with("POST", websocket), (None, plain("POST")));
    }

    #[test]
    fn two_readings_are_a_refusal() {
        use Reason::AmbiguousRequest;
        refused("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", AmbiguousRequest);
        refused("GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", AmbiguousRequest);
        refused("GET http://u@b@a/ HTTP/1.1\r\nHost: a\r\n\r\n", AmbiguousRequest);
        refused("GET http://b\\@a/ HTTP/1.1\r\nHost: a\r\n\r\n", AmbiguousRequest);
        refused("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nHost: a:443\r\n\r\n", AmbiguousRequest);
        refused("GET / HTTP/1.1\r\nHost: a\r\nConnection: close, Host\r\n\r\n", AmbiguousRequest);

        refused("GET / HTTP/1.1\nHost: a\r\n\r\n", AmbiguousRequest);
        refused("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", AmbiguousRequest);
        refused(
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            AmbiguousRequest,
        );
        refused("GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", AmbiguousRequest);
        refused("POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n", AmbiguousRequest);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        use Reason::{BadHost, BadRequest, NoHost, UpgradeDenied};
        refused("\x16\x03\x01\r\n\r\n", BadRequest);
        refused("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest);
        refused("PRI * HTTP/2.0\r\n\r\n", UpgradeDenied);
        refused("GET /\r\n\r\n", BadRequest);
        refused("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest);
        refused("GET / HTTP/1.1\r\nHost : a\r\n\r\n", BadRequest);
        refused("GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n", BadRequest);
        refused("GET / HTTP/1.1\r\nHost: a\r\nX: b\0\r\n\r\n", BadRequest);
        refused("GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n", BadRequest);
        refused("GET a HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest);
        refused("GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest);
        refused("GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest);
        refused("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest);
        refused("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", BadRequest);
        refused("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n", BadRequest);
        refused("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", BadRequest);
        refused("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", BadHost);
        refused("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", BadHost);
        refused("GET / HTTP/1.1\r\nHost: a:0\r\n\r\n", BadHost);
        refused("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", BadHost);
        refused("GET / HTTP/1.1\r\nHost: [a]\r\n\r\n", BadHost);
        refused("GET / HTTP/1.1\r\nX: a\r\n\r\n", NoHost);
        refused("GET / HTTP/1.1\r\nHost:\r\n\r\n", NoHost);
        refused("GET / HTTP/1.0\r\n\r\n", NoHost);
        let long = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(1 << 16));
        assert_eq!(look(&long), Err(Reason::HeadTooLarge));
    }

    #[test]
    fn a_head_in_pieces_is_read_once_and_the_same() {
        let raw = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut reader = HeadReader::default();
        for end in 0..raw.len() {
            assert_eq!(reader.look(&raw[..end], 99.into()), Ok(None));
        }
        assert_eq!(reader.look(raw, 99.into()).unwrap(), RequestHead::look(raw, 99).unwrap());
        let head = look("OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().unwrap();
        assert!(
            head.for_origin(b"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", b"", Onward::Stay)
                .starts_with(b"OPTIONS * HTTP/1.1\r\n")
        );
    }

    #[test]
    fn the_origin_gets_the_fields_as_sent_and_nothing_of_this_hop() {
        let raw = "GET http://a.example/p?q HTTP/1.1\r\nHost: a.example\r\nX-oDD:  v \r\nConnection: X-Drop, keep-alive\r\n\
                   X-Drop: 1\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic c2VjcmV0\r\n\r\n";
        let head = allowed(raw, "a.example");
        let sent = |onward| String::from_utf8(head.for_origin(raw.as_bytes(), b"", onward)).unwrap();
        let kept = "GET /p?q HTTP/1.1\r\nHost: a.example\r\nX-oDD:  v \r\n";
        assert_eq!(sent(Onward::Stay), format!("{kept}\r\n"));
        assert_eq!(sent(Onward::Close), format!("{kept}Connection: close\r\n\r\n"));
        assert_eq!(sent(Onward::Switch), format!("{kept}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"));
    }

    #[test]
    fn a_connection_is_kept_where_both_sides_keep_it() {
        let stays =
            |first: &str, fields: &str| look(&format!("{first}\r\nHost: a\r\n{fields}\r\n")).unwrap().unwrap().stays();
        assert!(stays("GET / HTTP/1.1", "") && stays("GET / HTTP/1.1", "Connection: keep-alive\r\n"));
        assert!(
            !stays("GET / HTTP/1.1", "Connection: x, CLOSE\r\n")
                && !stays("GET / HTTP/1.0", "Connection: keep-alive\r\n")
        );
        let answer = |first: &str, fields: &str| {
            HeadReader::default()
                .response(format!("{first}\r\n{fields}\r\n").as_bytes(), (1 << 16).into())
                .unwrap()
                .unwrap()
        };
        assert!(answer("HTTP/1.1 200 OK", "").stays() && !answer("HTTP/1.0 200 OK", "").stays());
        assert!(!answer("HTTP/1.1 200 OK", "Connection: close\r\n").stays());
        assert_eq!(answer("HTTP/1.1 101 S", "Upgrade: WebSocket\r\n").upgrade, Some(Upgrade::WebSocket));
        assert_eq!(answer("HTTP/1.1 101 S", "Upgrade: h2c\r\n").upgrade, None);
        assert_eq!(answer("HTTP/1.1 101 S", "Upgrade: websocket\r\nUpgrade: h2c\r\n").upgrade, None);
    }

    #[test]
    fn the_client_reads_that_the_connection_ends() {
        let raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi";
        let response = |raw: &[u8]| HeadReader::default().response(raw, (1 << 16).into());
        let head = response(raw).unwrap().unwrap();
        let kept = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n";
        assert_eq!(head.for_client(raw, b"", Onward::Close), format!("{kept}Connection: close\r\n\r\n").as_bytes());
        assert_eq!(head.for_client(raw, b"", Onward::Stay), format!("{kept}\r\n").as_bytes());
        assert_eq!((head.len, head.is_interim()), (raw.len() - 2, false));
        assert_eq!(response(b"SSH-2.0-x\r\n\r\n"), Err(Reason::BadAnswer));
        assert!(response(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap().unwrap().is_interim());
        let length = |fields: &str| {
            response(format!("HTTP/1.1 200 OK\r\n{fields}\r\n").as_bytes()).and_then(|h| h.unwrap().body("GET"))
        };
        assert_eq!(length("Content-Length: 7\r\n"), Ok(AnswerLength::Framed(BodyLength::Exactly(7))));
        assert_eq!(length("Transfer-Encoding: chunked\r\n"), Ok(AnswerLength::Framed(BodyLength::Chunked)));
        assert_eq!(length(""), Ok(AnswerLength::ToTheEnd));
        assert_eq!(length("Content-Length: 7\r\nTransfer-Encoding: chunked\r\n"), Err(Reason::BadAnswer));
        assert_eq!(length("Content-Length: 7\r\nContent-Length: 8\r\n"), Err(Reason::BadAnswer));
    }

    #[test]
    fn what_routes_or_frames_a_request_is_written_from_what_was_read() {
        let sent = |raw: &str| {
            let head = look(raw).unwrap().unwrap();
            String::from_utf8(head.for_origin(raw.as_bytes(), b"", Onward::Stay)).unwrap()
        };
        let raw = "POST / HTTP/1.1\r\nA: b\r\nhOST:\tX.Example.:080\t\r\ncontent-length:  0058\t\r\nC: d\r\n\r\n";
        assert_eq!(sent(raw), "POST / HTTP/1.1\r\nA: b\r\nHost: x.example:80\r\nContent-Length: 58\r\nC: d\r\n\r\n");
        let raw = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\tChunked\t\r\n\r\n";
        assert_eq!(sent(raw), "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        let raw = "GET http://x:80/y HTTP/1.1\r\nHost: X\r\n\r\n";
        assert_eq!(sent(raw), "GET /y HTTP/1.1\r\nHost: x:80\r\n\r\n");
        assert_eq!(sent("GET http://x/ HTTP/1.0\r\nA: b\r\n\r\n"), "GET / HTTP/1.0\r\nHost: x\r\nA: b\r\n\r\n");
    }

    #[test]
    fn what_frames_an_answer_is_written_from_what_was_read() {
        let read = |raw: &str| HeadReader::default().response(raw.as_bytes(), (1 << 16).into()).map(Option::unwrap);
        let sent =
            |raw: &str| String::from_utf8(read(raw).unwrap().for_client(raw.as_bytes(), b"", Onward::Stay)).unwrap();
        for (status, written, kept) in [
            ("200 OK", "content-length: 007\t\r\n", "Content-Length: 7\r\n"),
            ("200 OK", "Transfer-Encoding:chunked\t\r\n", "Transfer-Encoding: chunked\r\n"),
            ("304 N", "Content-Length: 7\r\n", "Content-Length: 7\r\n"),
            ("304 N", "Content-Length: 7\r\nContent-Length: 8\r\n", ""),
            ("204 N", "Content-Length: 7\r\n", ""),
            ("103 E", "Content-Length: 7\r\nLink: x\r\n", "Link: x\r\n"),
            ("100 C", "Transfer-Encoding: chunked\r\n", ""),
            ("101 S", "Content-Length: 0\r\n", ""),
            ("999 X", "A: b\r\n", "A: b\r\n"),
            ("200 OK", "Content-Length : 7\r\nA \t: b : c\r\n", "Content-Length: 7\r\nA: b : c\r\n"),
            ("200 OK", "Keep-Alive : 7\r\nConnection : close, A\r\nA : b\r\n", ""),
        ] {
            let raw = |fields: &str| format!("HTTP/1.1 {status}\r\n{fields}\r\n");
            assert_eq!(sent(&raw(written)), raw(kept), "{status} {written}");
        }
        for status in ["000 X", "099 X", "99 X", "1000 X"] {
            assert_eq!(read(&format!("HTTP/1.1 {status}\r\n\r\n")), Err(Reason::BadAnswer), "{status}");
        }
        let head = |raw: &str| read(raw).unwrap();
        assert_eq!(head("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").body("GET"), Err(Reason::BadAnswer));
        // A body that is announced where none may come is not waited for, and the connection is not used again.
        for (method, raw, announces_forbidden_body) in [
            ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", true),
            ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true),
            ("HEAD", "HTTP/1.1 200 OK\r\n\r\n", false),
            ("GET", "HTTP/1.1 304 N\r\nContent-Length: 7\r\n\r\n", true),
            ("GET", "HTTP/1.1 204 N\r\nContent-Length: 0\r\n\r\n", false),
        ] {
            let head = head(raw);
            assert_eq!(head.body(method), Ok(AnswerLength::Framed(BodyLength::Exactly(0))), "{method} {raw}");
            assert_eq!(head.announces_forbidden_body(method), announces_forbidden_body, "{method} {raw}");
        }
        assert!(!head("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n").announces_forbidden_body("GET"));
    }

    #[test]
    fn only_requests_without_a_body_share_a_connection() {
        let needs_own_connection = |raw: &str| look(raw).unwrap().unwrap().needs_own_connection();
        for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
            assert!(!needs_own_connection(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")), "{method}");
            assert!(
                !needs_own_connection(&format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")),
                "{method}"
            );
            for fields in ["Content-Length: 1\r\n", "Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\n"] {
                assert!(
                    needs_own_connection(&format!("{method} / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")),
                    "{method} {fields}"
                );
            }
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "get", "PROPFIND", "X"] {
            assert!(needs_own_connection(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")), "{method}");
        }
    }

    #[test]
    fn fields_that_name_another_request_are_seen() {
        let overrides =
            |field: &str| look(&format!("GET / HTTP/1.1\r\nHost: a\r\n{field}: x\r\n\r\n")).unwrap().unwrap().overrides;
        for field in ["X-HTTP-Method-Override", "x-method-override", "X-HTTP-METHOD", "X_HTTP_Method_Override"] {
            assert_eq!(overrides(field), Overrides { method: true, path: false }, "{field}");
        }
        for field in ["X-Original-URL", "x-rewrite-url", "X_Original_URL"] {
            assert_eq!(overrides(field), Overrides { method: false, path: true }, "{field}");
        }
        assert_eq!(overrides("X-Original-Host"), Overrides::default());
    }
}
