//! One question to one server over UDP.
//!
//! A random port, a random number and the random case of the question (draft-vixie-dnsext-dns0x20) are what a forger
//! must guess. What does not fit in all three is not an answer: it is ignored, and the wait goes on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_net::{DnsError, NetError};
use hickory_proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Query};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

/// The question is sent again after so long: packets get lost.
const RESEND: Duration = Duration::from_secs(1);
/// More than the payload that is asked for (EDNS, 1232 bytes): some servers send what they like.
const LARGEST: usize = 4096;

/// Asks and waits for the answer that fits.
///
/// # Errors
/// The network's; [`NetError::Timeout`] after `until`; [`NetError::Truncated`] where the answer is to be had over TCP;
/// [`NetError::Dns`] for a negative answer.
pub(super) async fn ask(server: SocketAddr, query: Query, until: Instant) -> Result<DnsResponse, NetError> {
    let mut options = DnsRequestOptions::default();
    options.case_randomization = true;
    let request = DnsRequest::from_query(query, options);
    let bytes = request.to_vec()?;
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // From here on the kernel hands over what this server sends, and nothing else.
    socket.connect(server).await?;
    let mut buffer = vec![0; LARGEST];
    let mut failed = NetError::Timeout;
    loop {
        socket.send(&bytes).await?;
        let again = until.min(Instant::now() + RESEND);
        while let Ok(received) = timeout_at(again, socket.recv(&mut buffer)).await {
            let received = buffer.get(..received?).unwrap_or_default();
            match fitting(&request, received) {
                Ok(Some(response)) if response.truncation => return Err(NetError::Truncated),
                Ok(Some(response)) => return Ok(DnsError::from_response(response)?),
                Ok(None) => {}
                // It may be forged; where nothing better comes, it says more than silence.
                Err(error) => failed = error,
            }
        }
        if Instant::now() >= until {
            return Err(failed);
        }
    }
}

/// The response, where it is one to this request: the same number, and the same question to the letter.
fn fitting(request: &DnsRequest, bytes: &[u8]) -> Result<Option<DnsResponse>, NetError> {
    if bytes.first_chunk() != Some(&request.id.to_be_bytes()) {
        return Ok(None);
    }
    let response = DnsResponse::from_buffer(bytes.to_vec())?;
    let (asked, echoed) = (request.queries.as_slice(), response.queries.as_slice());
    let same = |(asked, echoed): (&Query, &Query)| asked == echoed && asked.name.eq_case(&echoed.name);
    let fits = asked.len() == echoed.len() && asked.iter().zip(echoed).all(same);
    if !fits {
        tracing::debug!(?echoed, "a DNS packet with another question is ignored");
    }
    Ok(fits.then_some(response))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, ResponseCode};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    /// Answers the first question with all that `says` makes of it, in order.
    async fn asked(says: fn(&Message) -> Vec<Vec<u8>>) -> Result<Vec<String>, NetError> {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut buffer = [0; 1500];
            let (n, from) = server.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..n]).unwrap();
            for packet in says(&question) {
                server.send_to(&packet, from).await.unwrap();
            }
            server
        });
        let query = Query::query(Name::from_ascii("a-long-enough-name.example.").unwrap(), RecordType::A);
        let answer = ask(address, query, Instant::now() + Duration::from_millis(500)).await;
        drop(serving.await);
        answer.map(|response| response.answers.iter().map(|record| record.data.to_string()).collect())
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
        assert_eq!(answers.await.unwrap(), ["192.0.2.9"]);
    }

    #[tokio::test]
    async fn without_a_fitting_answer_the_time_runs_out() {
        let begun = Instant::now();
        let answers = asked(|question| {
            let mut case = answer(question, [192, 0, 2, 2]);
            case.queries[0].name = case.queries[0].name.to_lowercase();
            vec![packet(&case)]
        });
        assert!(matches!(answers.await, Err(NetError::Timeout)));
        assert!(begun.elapsed() >= Duration::from_millis(500));
    }

    #[tokio::test]
    async fn a_cut_answer_and_a_no_are_told_apart() {
        let cut = asked(|question| {
            let mut cut = question.clone().into_response();
            cut.metadata.truncation = true;
            vec![packet(&cut)]
        });
        assert!(matches!(cut.await, Err(NetError::Truncated)));
        let no = asked(|question| {
            let mut no = question.clone().into_response();
            no.metadata.response_code = ResponseCode::NXDomain;
            vec![packet(&no)]
        });
        assert!(matches!(no.await, Err(NetError::Dns(DnsError::NoRecordsFound(_)))));
    }
}
