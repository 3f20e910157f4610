//! What answers teach, before they leave: names that rules go by, in the store and in the kernel.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use moka::sync::Cache;
use tokio::time::Instant;

use super::allowance::Allowance;
use super::settings::NameserverSettings;
use crate::proxy::services::Services;
use egret_core::claim::network_of;
use egret_core::learned::Known;
use egret_core::name::HostName;
use egret_core::outcome::{Hint, Reason, Refusal, Stage};
use egret_core::policy::{Lesson, LessonUse, Policy, QuestionClearance};
use egret_core::rule::{LearnedName, Reach};

/// How long a lesson that the kernel has acknowledged need not be repeated: little beside what it holds for.
const ACKNOWLEDGED: Duration = Duration::from_secs(30);
/// With what it regains meanwhile, an eighth of what the kernel's sets have room for.
const MOST_OF_CLIENT: u32 = 1024;
/// Lessons that are known to have been acknowledged.
const MOST_ACKNOWLEDGED: u64 = 65_536;

/// Teaches the store and the kernel.
#[derive(Debug)]
pub(super) struct Teacher {
    services: Arc<Services>,
    settings: NameserverSettings,
    /// The addresses that were taught for a name, by rule: what the store alone keeps for one rule, the kernel may have to
    /// know for another.
    acknowledged: Cache<(LearnedName, Arc<str>), Arc<[IpAddr]>, RandomState>,
    hasher: RandomState,
    /// Addresses that one client may open under a rule's wildcards, in the time that they stand for.
    openings: Allowance,
    /// What stands for the rule of names that no network rule lists yet: rules have names.
    spare: Arc<str>,
}

impl Teacher {
    pub(super) fn new(services: Arc<Services>, settings: NameserverSettings) -> Self {
        let lasts = acknowledged(&settings);
        let acknowledged = Cache::builder().max_capacity(MOST_ACKNOWLEDGED).time_to_live(lasts);
        let acknowledged = acknowledged.build_with_hasher(RandomState::default());
        let openings = Allowance::new(MOST_OF_CLIENT, settings.stands(Duration::ZERO));
        Self { services, settings, acknowledged, hasher: RandomState::default(), openings, spare: "".into() }
    }

    /// Returns when all that goes by the answer knows it.
    ///
    /// # Errors
    /// A refusal at stage `network`, where the kernel does not take the addresses: then the client must not have them.
    pub(super) async fn teach(
        &self,
        policy: &Policy,
        clearance: &QuestionClearance,
        addresses: &[IpAddr],
        ttl: Duration,
    ) -> Result<(), Refusal> {
        let mut lessons = policy.taught(clearance, addresses);
        if self.services.table.is_some()
            && !addresses.is_empty()
            && lessons.iter().all(|lesson| lesson.by == LessonUse::Destination)
        {
            lessons.push(self.spare(clearance.name()));
        }
        self.learn(lessons, clearance.source().ip, (addresses, None), ttl, false).await
    }

    /// The same of a name's synthetic address, which leads to one of those `behind` it.
    ///
    /// # Errors
    /// As [`Self::teach`].
    pub(super) async fn teach_steered(
        &self,
        policy: &Policy,
        clearance: &QuestionClearance,
        synthetic: IpAddr,
        behind: &[IpAddr],
        ttl: Duration,
    ) -> Result<(), Refusal> {
        if self.services.table.is_none() {
            // Whatever goes there comes to egret.
            return Ok(());
        }
        if behind.is_empty() {
            // An earlier name's, or no more where rules lead.
            return match (self.services.learned.unmap(synthetic), &self.services.table) {
                (true, Some(table)) => {
                    table.unmap(synthetic).await.map_err(|error| kept_back(clearance.name(), &error))
                }
                _ => Ok(()),
            };
        }
        let has_moved = self.services.learned.map(synthetic, behind);
        let real = Known::at(&self.services.learned, Instant::now().into_std()).behind(synthetic);
        let mut lessons = policy.taught(clearance, behind);
        lessons.retain(|lesson| lesson.by != LessonUse::Destination);
        if lessons.is_empty() {
            lessons.push(self.spare(clearance.name()));
        }
        self.learn(lessons, clearance.source().ip, (&[synthetic], real), ttl, has_moved).await
    }

    async fn learn(
        &self,
        lessons: Vec<Lesson>,
        client: Option<IpAddr>,
        (addresses, behind): (&[IpAddr], Option<IpAddr>),
        ttl: Duration,
        has_moved: bool,
    ) -> Result<(), Refusal> {
        // What the kernel has acknowledged: a synthetic address with what is behind it.
        let whole: Arc<[IpAddr]> = addresses.iter().copied().chain(behind).collect();
        for Lesson { name, rule, by } in lessons {
            let asker = client.filter(|_| self.settings.opens_for_asker && by == LessonUse::Wildcard);
            let name = asker.map_or_else(|| name.clone(), |asker| name.asked_by(asker));
            let key = (name, rule);
            let is_known = |known: Arc<[IpAddr]>| whole.iter().all(|ip| known.contains(ip));
            if self.acknowledged.get(&key).is_some_and(is_known) {
                continue;
            }
            self.acknowledged.invalidate(&key);
            let (learned, now) = (&self.services.learned, Instant::now());
            let (name, rule) = &key;
            // No client's names take the room of others' under the same rule.
            let known = Known::at(learned, now.into_std());
            let fresh = addresses.iter().filter(|ip| !known.has(name, **ip)).count();
            if let Some(client) =
                client.map(network_of).filter(|_| by == LessonUse::Wildcard && **rule != *self.spare && fresh > 0)
                && !self.openings.take(Arc::clone(rule), client, u32::try_from(fresh).unwrap_or(u32::MAX), now)
            {
                let nearest =
                    "the client's names have opened as many addresses under the rule's wildcards as one client's may";
                let hint = Hint { rule: Some(Arc::clone(rule)), nearest: Some(nearest.to_owned()), ..Hint::default() };
                return Err(Refusal::new(Reason::RateLimited, Stage::Limit).with(hint));
            }
            let now = now.into_std();
            match by {
                LessonUse::Wildcard => learned.learn_for(rule, name, addresses, self.settings.stands(ttl), now),
                LessonUse::Network | LessonUse::Destination => drop(learned.learn(name, addresses, now)),
            }
            if let Some(table) = self
                .services
                .table
                .as_ref()
                .filter(|_| by != LessonUse::Destination && (has_moved || **rule != *self.spare))
                && let Err(error) = table.follow(name).await
            {
                return Err(kept_back(name.name(), &error));
            }
            self.acknowledged.insert(key, Arc::clone(&whole));
        }
        Ok(())
    }

    /// How long a lesson need not be repeated.
    pub(super) fn acknowledged(&self) -> Duration {
        acknowledged(&self.settings)
    }

    /// For a policy to come: a rule that lists the name then knows what its clients have been answered before.
    fn spare(&self, name: &HostName) -> Lesson {
        let name = LearnedName::new(name.clone(), Reach::default());
        Lesson { name, rule: Arc::clone(&self.spare), by: LessonUse::Wildcard }
    }

    /// Whose look-ups those of a name are, where many ask through one forwarder: one holder for each name.
    pub(super) fn holder_of(&self, name: &str) -> IpAddr {
        // The upper half, by which holders are distinguished.
        IpAddr::V6(Ipv6Addr::from_bits(u128::from(self.hasher.hash_one(name)) << 64))
    }
}

/// The refusal of what the kernel does not take.
fn kept_back(name: &HostName, error: &std::io::Error) -> Refusal {
    tracing::warn!(%error, %name, "the kernel does not take the addresses: the answer is kept back");
    let nearest = format!("the kernel did not take the addresses: {error}");
    Refusal::new(Reason::Internal, Stage::Network).with(Hint { nearest: Some(nearest), ..Hint::default() })
}

/// Where answers stand for a short time, sooner than usual.
fn acknowledged(settings: &NameserverSettings) -> Duration {
    ACKNOWLEDGED.min(settings.stands(Duration::ZERO) / 4)
}
