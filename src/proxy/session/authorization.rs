//! The evidence a live connection was authorized on, kept for re-authorization.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::task::Poll;

use crate::drain::DrainGuard;
use crate::proxy::services::Services;
use egret_core::answers::Answers;
use egret_core::claim::Claim;
use egret_core::outcome::{Ending, Halt, Reason, Refusal, Stage};
use egret_core::policy::Passage;
use egret_core::steered::InUse;
use egret_core::wire::Sighting;

/// The evidence a live connection was authorized on.
pub(super) struct Authorization {
    pub(super) claim: Claim,
    pub(super) sighting: Option<Sighting>,
    /// The synthetic address that the client dialled, which stays the name's meanwhile.
    pub(super) steered: Option<InUse>,
    /// How often re-authorization had been requested when its policy was fetched.
    pub(super) reviewed: u32,
}

impl Authorization {
    /// Goes on with something until it ends, or until it may not: then it has ended as revoked. The task must be one that
    /// listens to its guard.
    pub(super) async fn during<T>(
        &self,
        dialled: IpAddr,
        services: &Services,
        guard: &DrainGuard,
        work: impl Future<Output = Result<T, Halt>>,
    ) -> Result<T, Halt> {
        let (mut work, mut reviewed) = (pin!(work), self.reviewed);
        poll_fn(|cx| {
            if self.is_revoked(dialled, services, guard, &mut reviewed) {
                return Poll::Ready(Err(Halt::Broken(Ending::Revoked)));
            }
            work.as_mut().poll(cx)
        })
        .await
    }

    /// True if a reload requested re-authorization and the current policy no longer permits this connection.
    pub(super) fn is_revoked(
        &self,
        dialled: IpAddr,
        services: &Services,
        guard: &DrainGuard,
        reviewed: &mut u32,
    ) -> bool {
        let reviews = guard.reviews();
        std::mem::replace(reviewed, reviews) != reviews && !self.still_permits(dialled, services)
    }

    /// Whether the current policy would allow the connection to begin.
    fn still_permits(&self, dialled: IpAddr, services: &Services) -> bool {
        let (policy, known) = (services.policy.get(), services.known());
        let clearance = policy.by_claim(&self.claim, known).and_then(|passage| match (passage, &self.sighting) {
            (Passage::Passthrough(clearance), _) => Ok(clearance),
            (Passage::Peek(expectation), Some(sighting)) => policy.by_sighting(&self.claim, expectation, sighting),
            // Its bytes were not looked at, and now they matter.
            (Passage::Peek(_), None) => Err(Refusal::new(Reason::NoSni, Stage::Name)),
        });
        clearance.is_ok_and(|clearance| policy.by_address(&clearance, &Answers::literal(dialled), known).is_ok())
    }
}
