//! One question to one server over UDP.
//!
//! A random port, a random number and the random case of the question (draft-vixie-dnsext-dns0x20) are what a forger
//! must guess. What does not fit in all three is not an answer: it is ignored, and the wait goes on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_net::{DnsError, NetError};
use hickory_proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Query, ResponseCode};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::sent::{OnItsWay, SentQuestions};
use super::trouble::Trouble;

/// The question is sent again after so long: packets get lost. Where there is less time, after a third of it.
const RESEND: Duration = Duration::from_secs(1);
/// Between the answers to a question with an OPT record and the one without, where a server gives both.
const BOTH: Duration = Duration::from_millis(100);
/// More than the payload that is asked for (EDNS, 1232 bytes): some servers send what they like.
const LARGEST: usize = 4096;

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    /// With an OPT record (RFC 6891).
    pub(super) edns: bool,
    /// In random letter case.
    pub(super) mixes_case: bool,
    /// For answers with signatures; with an OPT record only.
    pub(super) is_signed: bool,
}

/// What came back.
#[derive(Debug)]
pub(super) enum Heard {
    Answer {
        response: DnsResponse,
        /// The server had an OPT record before it, and answered only the question without one.
        dislikes_edns: bool,
    },
    /// The answer is to be had over TCP.
    Cut,
    /// Only answers in another letter case than the question's.
    OtherCase,
}

/// Asks and waits for the answer that fits.
///
/// # Errors
/// [`Trouble`], a negative answer among it, after `until` at the latest.
pub(super) async fn ask(
    server: SocketAddr,
    query: &Query,
    manner: Manner,
    sent: &Arc<SentQuestions>,
    until: Instant,
) -> Result<Heard, Trouble> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.map_err(|error| Trouble::Local(error.to_string()))?;
    // From here on the kernel hands over what this server sends, and nothing else.
    socket.connect(server).await?;
    let now = Instant::now();
    let resend = RESEND.min(until.saturating_duration_since(now) / 3);
    let mut asked = vec![SentQuery::new(query, manner)?];
    let note = |asked: &SentQuery| manner.mixes_case.then(|| sent.note(&asked.bytes)).flatten();
    let mut on_their_way: Vec<Option<OnItsWay>> = asked.iter().map(note).collect();
    let mut best = Trouble::Silent;
    // What the question without an OPT record brought, and whether the other one was refused.
    let (mut bare_answer, mut is_refused): (Option<DnsResponse>, bool) = (None, false);
    let mut buffer = vec![0; LARGEST];
    loop {
        for asked in &asked {
            socket.send(&asked.bytes).await?;
        }
        let mut again = until.min(Instant::now() + resend);
        while let Ok(received) = timeout_at(again, socket.recv(&mut buffer)).await {
            let received = buffer.get(..received?).unwrap_or_default();
            let Some((at, request)) = asked.iter().enumerate().find(|(_, asked)| asked.is_meant_by(received)) else {
                continue;
            };
            let is_bare = at > 0;
            match request.read(received) {
                Reply::Fits(response) if response.truncation => return Ok(Heard::Cut),
                Reply::Fits(response) if manner.edns && !is_bare && is_for_edns(response.response_code) => {
                    is_refused = true;
                    if asked.len() == 1 {
                        let bare = SentQuery::new(query, Manner { edns: false, ..manner })?;
                        on_their_way.push(note(&bare));
                        socket.send(&bare.bytes).await?;
                        asked.push(bare);
                    }
                }
                // A slow server, or one whose first answer was lost, answers both at about the same time.
                Reply::Fits(response) if is_bare && !is_refused => {
                    bare_answer = Some(*response);
                    again = Instant::now() + BOTH;
                }
                Reply::Fits(response) => return answer(*response, is_bare),
                // It may be forged; where nothing better comes, it says more than silence.
                Reply::Misfits(trouble) if best == Trouble::Silent || trouble == Trouble::OtherCase => best = trouble,
                Reply::Misfits(_) => {}
            }
        }
        if let Some(response) = bare_answer {
            return answer(response, true);
        }
        if Instant::now() >= until {
            return if best == Trouble::OtherCase { Ok(Heard::OtherCase) } else { Err(best) };
        }
        if best == Trouble::OtherCase {
            return Ok(Heard::OtherCase);
        }
        // Some servers drop what they do not understand.
        if manner.edns && asked.len() == 1 {
            let bare = SentQuery::new(query, Manner { edns: false, ..manner })?;
            on_their_way.push(note(&bare));
            asked.push(bare);
        }
    }
}

/// An answer, or what it says of the name.
fn answer(response: DnsResponse, dislikes_edns: bool) -> Result<Heard, Trouble> {
    let response = DnsError::from_response(response).map_err(NetError::from)?;
    Ok(Heard::Answer { response, dislikes_edns })
}

/// Whether a response code may be about the OPT record and not about the name (RFC 6891 §7): FORMERR, NOTIMP, BADVERS.
pub(super) fn is_for_edns(code: ResponseCode) -> bool {
    const BADVERS: u16 = 16;
    matches!(code, ResponseCode::FormErr | ResponseCode::NotImp) || u16::from(code) == BADVERS
}

/// A question as it was sent.
struct SentQuery {
    request: DnsRequest,
    bytes: Vec<u8>,
}

/// What a packet with the right number is.
enum Reply {
    Fits(Box<DnsResponse>),
    Misfits(Trouble),
}

impl SentQuery {
    fn new(query: &Query, manner: Manner) -> Result<Self, Trouble> {
        let mut options = DnsRequestOptions::default();
        options.case_randomization = manner.mixes_case;
        options.use_edns = manner.edns;
        options.edns_set_dnssec_ok = manner.is_signed;
        let request = DnsRequest::from_query(query.clone(), options);
        let bytes = request.to_vec().map_err(NetError::from)?;
        Ok(Self { request, bytes })
    }

    fn is_meant_by(&self, packet: &[u8]) -> bool {
        packet.first_chunk() == Some(&self.request.id.to_be_bytes())
    }

    /// A response to it has the same question to the letter. A server that cannot parse the question may omit it.
    fn read(&self, packet: &[u8]) -> Reply {
        let response = match DnsResponse::from_buffer(packet.to_vec()) {
            Ok(response) => response,
            Err(error) => return Reply::Misfits(Trouble::Broken(error.to_string())),
        };
        let (asked, echoed) = (self.request.queries.as_slice(), response.queries.as_slice());
        let same = |is_same: fn(&Query, &Query) -> bool| {
            asked.len() == echoed.len() && asked.iter().zip(echoed).all(|(asked, echoed)| is_same(asked, echoed))
        };
        if same(|asked, echoed| asked == echoed && asked.name.eq_case(&echoed.name)) {
            Reply::Fits(Box::new(response))
        } else if same(|asked, echoed| asked == echoed) {
            Reply::Misfits(Trouble::OtherCase)
        } else if echoed.is_empty() && is_for_edns(response.response_code) {
            Reply::Fits(Box::new(response))
        } else {
            tracing::debug!(?echoed, "a DNS packet with another question is ignored");
            Reply::Misfits(if echoed.is_empty() { Trouble::NoQuestion } else { Trouble::Silent })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Message;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    const USUAL: Manner = Manner { edns: true, mixes_case: true, is_signed: false };

    /// The packets that a server makes of a question.
    type Says = fn(&Message) -> Vec<Vec<u8>>;

    /// Answers every question with all that `says` makes of it, in order.
    async fn asked(says: Says) -> Result<Heard, Trouble> {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (n, from) = server.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..n]).unwrap();
                for packet in says(&question) {
                    let _ = server.send_to(&packet, from).await;
                }
            }
        });
        let query = Query::query(Name::from_ascii("a-long-enough-name.example.").unwrap(), RecordType::A);
        ask(address, &query, USUAL, &Arc::default(), Instant::now() + Duration::from_millis(900)).await
    }

    fn answer(question: &Message, ip: [u8; 4]) -> Message {
        let mut answer = question.clone().into_response();
        let name = question.queries[0].name.clone();
        answer.add_answer(Record::from_rdata(name, 60, RData::A(A(ip.into()))));
        answer
    }

    fn packet(message: &Message) -> Vec<u8> {
        message.to_vec().unwrap()
    }

    /// The address, and whether EDNS was disliked.
    #[track_caller]
    fn found(heard: Result<Heard, Trouble>) -> (String, bool) {
        let Heard::Answer { response, dislikes_edns } = heard.unwrap() else { panic!("no answer") };
        (response.answers[0].data.to_string(), dislikes_edns)
    }

    #[tokio::test]
    async fn what_a_forger_sends_is_ignored_and_the_wait_goes_on() {
        let answers = asked(|question| {
            let mut number = answer(question, [192, 0, 2, 1]);
            number.metadata.id ^= 1;
            let mut case = answer(question, [192, 0, 2, 2]);
            case.queries[0].name = case.queries[0].name.to_lowercase();
            let mut name = answer(question, [192, 0, 2, 3]);
            name.queries[0].name = Name::from_ascii("another.example.").unwrap();
            let mut none = answer(question, [192, 0, 2, 4]);
            none.queries.clear();
            let broken = [&question.id.to_be_bytes()[..], &[0xff; 40]].concat();
            let right = answer(question, [192, 0, 2, 9]);
            vec![packet(&number), packet(&case), packet(&name), packet(&none), broken, vec![7], packet(&right)]
        });
        assert_eq!(found(answers.await), ("192.0.2.9".to_owned(), false));
    }

    #[tokio::test]
    async fn without_a_fitting_answer_the_last_misfit_is_said() {
        let begun = Instant::now();
        let none = asked(|question| {
            let mut none = answer(question, [192, 0, 2, 2]);
            none.queries.clear();
            vec![packet(&none)]
        });
        assert_eq!(none.await.unwrap_err(), Trouble::NoQuestion);
        assert!(begun.elapsed() >= Duration::from_millis(900));
        let begun = Instant::now();
        let case = asked(|question| {
            let mut case = answer(question, [192, 0, 2, 2]);
            case.queries[0].name = case.queries[0].name.to_lowercase();
            vec![packet(&case)]
        });
        assert!(matches!(case.await, Ok(Heard::OtherCase)));
        let took = begun.elapsed();
        assert!(
            took >= Duration::from_millis(290) && took < Duration::from_millis(800),
            "{took:?}: a third of the time"
        );
        assert_eq!(asked(|_| Vec::new()).await.unwrap_err(), Trouble::Silent);
    }

    #[tokio::test]
    async fn a_cut_answer_is_distinguished_from_an_absence() {
        let cut = asked(|question| {
            let mut cut = question.clone().into_response();
            cut.metadata.truncation = true;
            vec![packet(&cut)]
        });
        assert!(matches!(cut.await, Ok(Heard::Cut)));
        let no = asked(|question| {
            let mut no = question.clone().into_response();
            no.metadata.response_code = ResponseCode::NXDomain;
            vec![packet(&no)]
        });
        assert!(matches!(no.await, Err(Trouble::NoName(_))));
    }

    #[tokio::test]
    async fn a_server_that_knows_no_edns_is_asked_without_it() {
        /// What an old server makes of a question with an OPT record.
        fn old(question: &Message, to_edns: impl Fn(&Message) -> Option<Vec<u8>>) -> Vec<Vec<u8>> {
            let bare = packet(&answer(question, [192, 0, 2, 9]));
            if question.edns.is_none() { vec![bare] } else { to_edns(question).into_iter().collect() }
        }
        fn refuses(question: &Message, code: ResponseCode) -> Message {
            let mut no = question.clone().into_response();
            no.edns = None;
            no.metadata.response_code = code;
            no
        }
        let ways: [Says; 5] = [
            |question| old(question, |question| Some(packet(&refuses(question, ResponseCode::FormErr)))),
            |question| old(question, |question| Some(packet(&refuses(question, ResponseCode::NotImp)))),
            |question| {
                old(question, |question| {
                    let mut no = question.clone().into_response();
                    no.metadata.response_code = ResponseCode::BADVERS;
                    Some(packet(&no))
                })
            },
            // The header alone, as BIND 4 did.
            |question| {
                old(question, |question| {
                    let mut no = refuses(question, ResponseCode::FormErr);
                    no.queries.clear();
                    Some(packet(&no))
                })
            },
            |question| old(question, |_| None),
        ];
        for (n, way) in ways.into_iter().enumerate() {
            let begun = Instant::now();
            assert_eq!(found(asked(way).await), ("192.0.2.9".to_owned(), true), "{n}");
            assert!(
                begun.elapsed() < Duration::from_millis(if n < 4 { 250 } else { 700 }),
                "{n}: {:?}",
                begun.elapsed()
            );
        }
        let never = asked(|question| vec![packet(&refuses(question, ResponseCode::FormErr))]);
        assert_eq!(never.await.unwrap_err(), Trouble::Code(ResponseCode::FormErr));
        // A name's own failure says nothing of EDNS.
        let fails = asked(|question| vec![packet(&refuses(question, ResponseCode::ServFail))]);
        assert_eq!(fails.await.unwrap_err(), Trouble::Code(ResponseCode::ServFail));
    }
}
