//! From what servers said to what a client reads: the chain of aliases flattened, and everything left out that would
//! lead around the policy.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::svcb::{Alpn, Mandatory, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::settings::NameserverSettings;
use crate::dns::RecordSet;
use crate::dns::chain::{self, Chain, MAX_ADDRESSES};
use egret_core::name::HostName;
use egret_core::outcome::{Reason, Refusal, Stage};
use egret_core::policy::{Policy, QuestionClearance};

/// What a client may read.
#[derive(Debug, PartialEq)]
pub(super) struct Shaped {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    /// Of an absence: who says so; of a signed answer: all that came with it.
    pub(super) authorities: Vec<Record>,
    /// Every address in it.
    pub(super) addresses: Vec<IpAddr>,
}

/// What answers are judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judge<'a> {
    pub(super) policy: &'a Policy,
    pub(super) clearance: &'a QuestionClearance,
    pub(super) settings: &'a NameserverSettings,
    /// Whether clients may have addresses beside the name's own records.
    pub(super) has_hints: bool,
    /// Whether what servers signed is passed on as it is.
    pub(super) is_intact: bool,
}

impl Judge<'_> {
    /// Judges a record set and everything on its way.
    ///
    /// # Errors
    /// A refusal of the whole answer.
    pub(super) fn shape(self, question: &Name, kind: RecordType, set: &RecordSet) -> Result<Shaped, Refusal> {
        let in_dns = |reason| Refusal::new(reason, Stage::Dns);
        let Chain { targets, records, ttl } = chain::walk(question, kind, &set.answers).map_err(in_dns)?;
        let asked_for = records.iter().filter_map(|record| match &record.data {
            RData::CNAME(target) => Some(&target.0),
            _ => None,
        });
        for target in targets.iter().copied().chain(asked_for).filter_map(host) {
            self.policy.by_alias(self.clearance, &target)?;
        }
        if records.is_empty() {
            let (answers, authorities) = match self.is_intact {
                true => intact(question, kind, &targets, set),
                false => (Vec::new(), set.soa.iter().cloned().collect()),
            };
            return Ok(Shaped { code: set.code, answers, authorities, addresses: Vec::new() });
        }
        let mut addresses: Vec<IpAddr> = records.iter().filter_map(|record| chain::address(record)).collect();
        unique(&mut addresses).map_err(in_dns)?;
        self.policy.by_answer(self.clearance, &addresses, &self.settings.local_ranges)?;
        if self.is_intact {
            let (answers, authorities) = intact(question, kind, &targets, set);
            return Ok(Shaped { code: ResponseCode::NoError, answers, authorities, addresses });
        }
        let mut answers: Vec<Record> =
            records.into_iter().filter_map(|record| self.record(record, &mut addresses)).collect();
        unique(&mut addresses).map_err(in_dns)?;
        if self.settings.keeps_chain {
            let aliases = set
                .answers
                .iter()
                .filter(|record| record.record_type() == RecordType::CNAME && kind != RecordType::CNAME);
            let is_on_way = |record: &&Record| record.name == *question || targets.contains(&&record.name);
            answers.splice(0..0, aliases.filter(is_on_way).cloned());
        } else {
            for record in &mut answers {
                (record.name, record.ttl) = (question.clone(), ttl);
            }
        }
        Ok(Shaped { code: ResponseCode::NoError, answers, authorities: Vec::new(), addresses })
    }

    /// One record, as far as a client may have it.
    fn record(self, record: &Record, addresses: &mut Vec<IpAddr>) -> Option<Record> {
        let data = match &record.data {
            RData::HTTPS(https) => RData::HTTPS(hickory_proto::rr::rdata::HTTPS(self.service(&https.0, addresses)?)),
            RData::SVCB(svcb) => RData::SVCB(self.service(svcb, addresses)?),
            RData::SRV(srv) if !self.may_ask(&srv.target) => return None,
            other => other.clone(),
        };
        Some(Record::from_rdata(record.name.clone(), record.ttl, data))
    }

    /// RFC 9460: without what would hide the name (ECH) or leave TCP (HTTP/3), and only towards names and ports that rules
    /// list.
    fn service(self, service: &SVCB, addresses: &mut Vec<IpAddr>) -> Option<SVCB> {
        let is_alias = service.svc_priority == 0;
        let is_elsewhere = !service.target_name.is_root();
        if is_elsewhere && !self.may_ask(&service.target_name) {
            return None;
        }
        if is_alias {
            return Some(service.clone());
        }
        let mut params: Vec<(SvcParamKey, SvcParamValue)> = Vec::new();
        let mut hints: Vec<IpAddr> = Vec::new();
        for (key, value) in &service.svc_params {
            let value = match value {
                SvcParamValue::EchConfigList(_) => continue,
                SvcParamValue::Alpn(Alpn(all)) => {
                    let left: Vec<String> = all.iter().filter(|alpn| !alpn.starts_with("h3")).cloned().collect();
                    if left.is_empty() {
                        continue;
                    }
                    SvcParamValue::Alpn(Alpn(left))
                }
                SvcParamValue::Port(port) if !self.policy.opens(self.clearance, *port) => return None,
                SvcParamValue::Ipv4Hint(_) | SvcParamValue::Ipv6Hint(_) if !self.has_hints => continue,
                SvcParamValue::Ipv4Hint(all) => {
                    hints.extend(all.0.iter().map(|ip| IpAddr::V4(ip.0)));
                    value.clone()
                }
                SvcParamValue::Ipv6Hint(all) => {
                    hints.extend(all.0.iter().map(|ip| IpAddr::V6(ip.0)));
                    value.clone()
                }
                other => other.clone(),
            };
            params.push((*key, value));
        }
        let has = |params: &[(SvcParamKey, SvcParamValue)], key| params.iter().any(|(is, _)| *is == key);
        // Only the protocols in `alpn` were offered, and none of them is left.
        if has(&params, SvcParamKey::NoDefaultAlpn) && !has(&params, SvcParamKey::Alpn) {
            return None;
        }
        if self.policy.by_answer(self.clearance, &hints, &self.settings.local_ranges).is_err() {
            params.retain(|(key, _)| !matches!(key, SvcParamKey::Ipv4Hint | SvcParamKey::Ipv6Hint));
        } else {
            addresses.append(&mut hints);
        }
        let left: Vec<SvcParamKey> = params.iter().map(|(key, _)| *key).collect();
        for (_, value) in &mut params {
            if let SvcParamValue::Mandatory(Mandatory(keys)) = value {
                keys.retain(|key| left.contains(key));
            }
        }
        params.retain(|(_, value)| !matches!(value, SvcParamValue::Mandatory(Mandatory(keys)) if keys.is_empty()));
        Some(SVCB::new(service.svc_priority, service.target_name.clone(), params))
    }

    fn may_ask(self, name: &Name) -> bool {
        host(name).is_some_and(|name| self.policy.by_question(self.clearance.source(), &name).is_ok())
    }
}

/// What a client needs that validates a signed answer: the records on its way, and the proof of what there is not.
fn intact(question: &Name, kind: RecordType, targets: &[&Name], set: &RecordSet) -> (Vec<Record>, Vec<Record>) {
    let is_on_way = |record: &&Record| record.name == *question || targets.contains(&&record.name);
    let of = [kind, RecordType::CNAME, RecordType::RRSIG];
    let proofs = [RecordType::SOA, RecordType::NSEC, RecordType::NSEC3, RecordType::RRSIG];
    let answers = set.answers.iter().filter(is_on_way).filter(|record| of.contains(&record.record_type()));
    let authorities = set.authorities.iter().filter(|record| proofs.contains(&record.record_type()));
    (answers.cloned().collect(), authorities.cloned().collect())
}

/// Each address once, and not more than an answer may have.
fn unique(addresses: &mut Vec<IpAddr>) -> Result<(), Reason> {
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.len() > MAX_ADDRESSES { Err(Reason::BadDns) } else { Ok(()) }
}

/// A name in a record that is a host's.
pub(super) fn host(name: &Name) -> Option<HostName> {
    HostName::from_wire(name.to_ascii().as_bytes()).ok()
}
