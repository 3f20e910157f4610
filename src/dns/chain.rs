//! From a question to its addresses, along the aliases and nowhere else.
//!
//! The client library does not filter answers by owner: records of other names may stand in the same
//! section, and none of them may lead anywhere.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use egret_core::outcome::Reason;

/// Addresses of one kind behind a name. Content networks answer with a dozen; a larger answer is refused whole, for to
/// cut it could hide the denied part of a mixed one.
pub(super) const MAX_ADDRESSES: usize = 256;
/// Aliases followed; content networks use three or four.
const MAX_ALIASES: usize = 16;

/// The addresses of one kind behind `question`, and the shortest life on the way.
///
/// # Errors
/// [`Reason::CnameLoop`] past [`MAX_ALIASES`], [`Reason::BadDns`] past [`MAX_ADDRESSES`], [`Reason::NoSuchName`] where the chain ends without an address.
pub(super) fn follow(question: &Name, kind: RecordType, records: &[Record]) -> Result<(Vec<IpAddr>, Duration), Reason> {
    let mut owner = question;
    let mut ttl = u32::MAX;
    for _ in 0..=MAX_ALIASES {
        let mut addresses: Vec<IpAddr> = Vec::new();
        let of_owner = |record: &&Record| record.name == *owner && record.dns_class == DNSClass::IN;
        for record in records.iter().filter(of_owner) {
            let ip = match (&record.data, kind) {
                (RData::A(ip), RecordType::A) => IpAddr::V4(ip.0),
                (RData::AAAA(ip), RecordType::AAAA) => IpAddr::V6(ip.0),
                _ => continue,
            };
            ttl = ttl.min(record.ttl);
            if addresses.contains(&ip) {
                continue;
            }
            if addresses.len() == MAX_ADDRESSES {
                return Err(Reason::BadDns);
            }
            addresses.push(ip);
        }
        if !addresses.is_empty() {
            return Ok((addresses, Duration::from_secs(ttl.into())));
        }
        let alias = records.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *owner => Some((&target.0, record.ttl)),
            _ => None,
        });
        let Some((target, life)) = alias else { return Err(Reason::NoSuchName) };
        ttl = ttl.min(life);
        owner = target;
    }
    Err(Reason::CnameLoop)
}

/// What such an answer is like.
pub(super) const fn words(reason: Reason) -> &'static str {
    match reason {
        Reason::CnameLoop => "the name's aliases (CNAME) lead in a circle, or to more than sixteen others",
        Reason::BadDns => "the answer has more than 256 addresses",
        _ => "the answer has no address for the name",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, AAAA, CNAME};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn a(owner: &str, ttl: u32, ip: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A(ip.parse().unwrap())))
    }

    fn alias(owner: &str, ttl: u32, target: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    fn walk(records: &[Record]) -> Result<(Vec<String>, u64), Reason> {
        follow(&name("a.example."), RecordType::A, records)
            .map(|(ips, ttl)| (ips.iter().map(ToString::to_string).collect(), ttl.as_secs()))
    }

    #[test]
    fn only_the_chain_counts() {
        let ok = |ips: &[&str], ttl| Ok((ips.iter().map(ToString::to_string).collect(), ttl));
        assert_eq!(
            walk(&[a("A.Example.", 60, "192.0.2.1"), a("a.example.", 30, "192.0.2.2")]),
            ok(&["192.0.2.1", "192.0.2.2"], 30)
        );
        assert_eq!(
            walk(&[
                alias("a.example.", 5, "b.example."),
                a("b.example.", 60, "192.0.2.1"),
                a("c.example.", 1, "10.0.0.1")
            ]),
            ok(&["192.0.2.1"], 5)
        );
        assert_eq!(walk(&[a("evil.example.", 60, "192.0.2.1")]), Err(Reason::NoSuchName));
        assert_eq!(walk(&[alias("a.example.", 5, "b.example.")]), Err(Reason::NoSuchName));
        assert_eq!(
            walk(&[Record::from_rdata(name("a.example."), 5, RData::AAAA(AAAA("2001:db8::1".parse().unwrap())))]),
            Err(Reason::NoSuchName)
        );
    }

    #[test]
    fn too_many_addresses_are_refused_whole() {
        let many = |n: u16| -> Vec<Record> {
            (0..n).map(|n| a("a.example.", 60, &format!("192.0.{}.{}", n >> 8, n & 255))).collect()
        };
        assert_eq!(walk(&many(256)).unwrap().0.len(), 256);
        assert_eq!(walk(&[many(256), many(256)].concat()).unwrap().0.len(), 256, "each counts once");
        assert_eq!(walk(&many(257)), Err(Reason::BadDns));
    }

    #[test]
    fn a_circle_of_aliases_ends() {
        assert_eq!(
            walk(&[alias("a.example.", 5, "b.example."), alias("b.example.", 5, "a.example.")]),
            Err(Reason::CnameLoop)
        );
        let long: Vec<Record> = std::iter::once(alias("a.example.", 5, "n0.example."))
            .chain((0..20).map(|n| alias(&format!("n{n}.example."), 5, &format!("n{}.example.", n + 1))))
            .collect();
        assert_eq!(walk(&long), Err(Reason::CnameLoop));
    }
}
