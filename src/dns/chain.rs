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
pub const MAX_ADDRESSES: usize = 256;
/// Aliases followed; content networks use three or four.
const MAX_ALIASES: usize = 16;

/// Records of one kind behind a question, and the way to them.
#[derive(Debug)]
pub struct Chain<'a> {
    /// The names that aliases lead to, in order.
    pub targets: Vec<&'a Name>,
    /// Of the last one; empty where it has none of the kind.
    pub records: Vec<&'a Record>,
    /// The shortest life on the way, in seconds.
    pub ttl: u32,
}

/// Walks from a question along its aliases.
///
/// # Errors
/// [`Reason::CnameLoop`] past sixteen aliases.
pub fn walk<'a>(question: &'a Name, kind: RecordType, records: &'a [Record]) -> Result<Chain<'a>, Reason> {
    let mut chain = Chain { targets: Vec::new(), records: Vec::new(), ttl: u32::MAX };
    let mut owner = question;
    loop {
        let of_owner = |record: &&Record| record.name == *owner && record.dns_class == DNSClass::IN;
        chain.records.extend(records.iter().filter(of_owner).filter(|record| record.record_type() == kind));
        if !chain.records.is_empty() {
            chain.ttl = chain.records.iter().map(|record| record.ttl).fold(chain.ttl, u32::min);
            return Ok(chain);
        }
        let alias = records.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *owner => Some((&target.0, record.ttl)),
            _ => None,
        });
        let Some((target, ttl)) = alias else { return Ok(chain) };
        if chain.targets.len() == MAX_ALIASES {
            return Err(Reason::CnameLoop);
        }
        chain.ttl = chain.ttl.min(ttl);
        chain.targets.push(target);
        owner = target;
    }
}

/// The addresses of one kind behind `question`, and the shortest life on the way.
///
/// # Errors
/// [`Reason::CnameLoop`] past [`MAX_ALIASES`], [`Reason::BadDns`] past [`MAX_ADDRESSES`], [`Reason::NoSuchName`] where the chain ends without an address.
pub(super) fn follow(question: &Name, kind: RecordType, records: &[Record]) -> Result<(Vec<IpAddr>, Duration), Reason> {
    let Chain { records, ttl, .. } = walk(question, kind, records)?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for ip in records.iter().filter_map(|record| address(record)) {
        if addresses.contains(&ip) {
            continue;
        }
        if addresses.len() == MAX_ADDRESSES {
            return Err(Reason::BadDns);
        }
        addresses.push(ip);
    }
    if addresses.is_empty() {
        return Err(Reason::NoSuchName);
    }
    Ok((addresses, Duration::from_secs(ttl.into())))
}

/// The address in a record that is one.
#[must_use]
pub fn address(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(ip) => Some(IpAddr::V4(ip.0)),
        RData::AAAA(ip) => Some(IpAddr::V6(ip.0)),
        _ => None,
    }
}

/// What such an answer is like.
pub const fn words(reason: Reason) -> &'static str {
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
