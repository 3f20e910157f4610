//! The second act: what a client asks for is judged, three times with growing evidence.

use tokio::time::Instant;

use super::authorization::Authorization;
use super::turn::Turn;
use crate::proxy::listen::Claimed;
use crate::proxy::services::Services;
use egret_core::answers::Answers;
use egret_core::claim::{Claim, Via};
use egret_core::outcome::{Reason, Refusal};
use egret_core::policy::{Clearance, Expectation, Passage, Permit, Policy};
use egret_core::wire::ja4::Parts;
use egret_core::wire::{Expected, Sighting};

/// Where a claim may go, and why.
pub(super) struct Decision {
    pub(super) permit: Permit,
    pub(super) authorization: Authorization,
    /// Whether the bytes were looked at, so that they may change their protocol.
    pub(super) was_seen: bool,
}

/// What has been cleared, and by what.
struct Cleared {
    clearance: Clearance,
    sighting: Option<Sighting>,
    was_seen: bool,
}

/// Finds out what the client asks for, and judges it. `before` is the claim of an earlier request on the connection.
///
/// # Errors
/// The refusal.
pub(super) async fn decide(turn: &mut Turn<'_>, before: Option<&Claim>) -> Result<Decision, Refusal> {
    let Claimed { mut claim, sighting } = claim(turn, before).await?;
    let steered = match &turn.services.steering {
        Some(steering) => steering.claim(&mut claim)?,
        None => None,
    };
    if steered.is_some() {
        turn.record.claim(&claim);
    }
    // One policy from here to the dial: a clearance means nothing to another one.
    let reviewed = turn.guard.reviews();
    let policy = turn.services.policy.get();
    let Cleared { clearance, mut sighting, was_seen } = clear(turn, &policy, &claim, sighting, before).await?;
    let permit = permit(turn, &policy, &claim, &clearance).await?;
    turn.client.window.settle();
    if let Some(Sighting::Tls(hello)) = &mut sighting {
        // Long, and no rule asks for it.
        hello.ja4 = Parts::default();
    }
    Ok(Decision { permit, authorization: Authorization { claim, sighting, steered, reviewed }, was_seen })
}

async fn claim(turn: &mut Turn<'_>, before: Option<&Claim>) -> Result<Claimed, Refusal> {
    let claimed = turn.client.claim(turn.limits, before).await;
    let mut claimed = claimed.inspect_err(|_| turn.note_raw_host())?;
    turn.record.claim(&claimed.claim);
    if let Some(sighting) = &claimed.sighting {
        turn.record.sighting(sighting);
    }
    // What its certificate says is known already.
    turn.record.identity(&claimed.claim.identity);
    turn.client.authenticate(&mut claimed.claim, turn.limits).await?;
    turn.record.identity(&claimed.claim.identity);
    Ok(claimed)
}

/// Judges the claim first: to see a CONNECT client's bytes it must be allowed to send them, and from then on a refusal
/// can only be spoken in the protocol of those bytes.
async fn clear(
    turn: &mut Turn<'_>,
    policy: &Policy,
    claim: &Claim,
    sighting: Option<Sighting>,
    before: Option<&Claim>,
) -> Result<Cleared, Refusal> {
    match policy.by_claim(claim, turn.services.known())? {
        Passage::Passthrough(clearance) => {
            if sighting.is_none() {
                turn.record.straight();
            }
            Ok(Cleared { clearance, sighting, was_seen: false })
        }
        Passage::Peek(expectation) => {
            let sighting = match sighting {
                Some(sighting) => sighting,
                None => sight(turn, expectation, before).await?,
            };
            let clearance = policy.by_sighting(claim, expectation, &sighting)?;
            Ok(Cleared { clearance, sighting: Some(sighting), was_seen: true })
        }
    }
}

/// Looks at the client's own first bytes.
async fn sight(turn: &mut Turn<'_>, expectation: Expectation, before: Option<&Claim>) -> Result<Sighting, Refusal> {
    turn.client.go_ahead().await;
    let expected = expectation.expected();
    // Where requests have begun in a tunnel, nothing else follows.
    let begun = before.is_some_and(|before| before.via != Via::Absolute);
    let expected = if begun { Expected { tls: false, ..expected } } else { expected };
    let sighting = turn.client.sight(expected, turn.limits).await;
    let sighting = sighting.inspect_err(|_| turn.note_raw_host())?;
    turn.record.sighting(&sighting);
    Ok(sighting)
}

/// Resolves what was cleared, and judges the answer.
async fn permit(turn: &mut Turn<'_>, policy: &Policy, claim: &Claim, clearance: &Clearance) -> Result<Permit, Refusal> {
    let services = turn.services;
    policy.matched_rule_of(clearance).iter().for_each(|matched| turn.record.matched_rule(matched));
    let mut answers = services.dns.resolve(clearance).await?;
    learn(policy, clearance, services, &answers);
    let mut judged = policy.by_address(clearance, &answers, services.known());
    if let Err(Refusal { reason: Reason::DstNotInDns, .. }) = &judged {
        // The client may have asked at another time, or got another part of a large answer.
        answers = Box::pin(services.dns.resolve_again(clearance)).await?;
        learn(policy, clearance, services, &answers);
        judged = policy.by_address(clearance, &answers, services.known());
    }
    if claim.name().is_some() || clearance.is_name() {
        turn.record.answers(&answers);
    }
    let permit = judged?;
    turn.record.matched_rule(permit.matched_rule());
    Ok(permit)
}

/// Learns the addresses of a name that clients must have dialled themselves.
fn learn(policy: &Policy, clearance: &Clearance, services: &Services, answers: &Answers) {
    if clearance.dst().is_none() || !answers.from_servers || answers.is_stale {
        return;
    }
    for name in policy.learnable(clearance, answers) {
        services.learned.learn(&name, &answers.addresses, Instant::now().into_std());
    }
}

impl Turn<'_> {
    /// What stands where a name belongs, for the record of a refusal.
    fn note_raw_host(&mut self) {
        let raw = self.client.raw_host();
        raw.into_iter().for_each(|raw| self.record.raw_name(raw));
    }
}
