//! The first act: a connection that was accepted becomes a client that may speak.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::drain::DrainGuard;
use crate::proxy::listen::accept::{self, NotAccepted};
use crate::proxy::listen::{Client, ConnectionSlot, Listener};
use crate::proxy::peek::{PeekLimits, Window};
use crate::proxy::services::Services;
use crate::proxy::stream;
use crate::record::Record;
use egret_core::claim::{ClientAddr, OriginalDst};
use egret_core::outcome::{Reason, Refusal, Stage};

/// A connection as it was accepted.
#[derive(Debug)]
pub struct Arrival {
    pub stream: TcpStream,
    pub peer: ClientAddr,
    pub listener: Arc<Listener>,
    /// `None`: there was none left.
    pub slot: Option<ConnectionSlot>,
}

/// A client that may speak.
pub(super) struct Admitted {
    pub(super) client: Client,
    pub(super) record: Record,
    pub(super) slot: ConnectionSlot,
    /// Of what it must show.
    pub(super) limits: PeekLimits,
}

/// Opens the record, and lets the client in where it may be; what keeps it out is in its record.
pub(super) async fn admit(arrival: Arrival, services: &Services, guard: &DrainGuard) -> Option<Admitted> {
    let Arrival { stream, peer, listener, slot } = arrival;
    let record = services.access_log.open(&listener.name, peer);
    let Some(slot) = slot else {
        stream::reset(&stream);
        record.refuse(&Refusal::new(Reason::TooManyConnections, Stage::Limit));
        return None;
    };
    let mut admission = Admission { services, guard, record, slot, limits: services.peek_limits() };
    let let_in = admission.let_in(stream, peer, &listener).await;
    let Admission { record, slot, limits, .. } = admission;
    match let_in {
        Ok(client) => return Some(Admitted { client, record, slot, limits }),
        Err(NotAccepted::Refused(refusal)) => record.refuse(&refusal),
        Err(NotAccepted::Empty) => record.empty(),
    }
    None
}

struct Admission<'a> {
    services: &'a Services,
    guard: &'a DrainGuard,
    record: Record,
    slot: ConnectionSlot,
    limits: PeekLimits,
}

impl Admission<'_> {
    /// Waiting for the log does not count against the client's deadlines.
    async fn let_in(
        &mut self,
        mut stream: TcpStream,
        peer: ClientAddr,
        listener: &Arc<Listener>,
    ) -> Result<Client, NotAccepted> {
        let Self { services, guard, record, slot, limits } = self;
        let address = accept::client_address(&mut stream, peer, listener, limits.until).await?;
        record.client(address);
        // With the PROXY protocol the client is known only now; every other one was counted as it was accepted.
        if listener.proxies.is_some() && !slot.assign(services.connections.counts(address.ip(), false)) {
            stream::reset(&stream);
            return Err(Refusal::new(Reason::TooManyConnections, Stage::Limit).into());
        }
        let begun = Instant::now();
        if !may_begin(services, address.ip(), guard).await {
            return Err(Refusal::new(Reason::Draining, Stage::Limit).into());
        }
        limits.until += begun.elapsed();
        record.admitted();
        let accepted = accept::accept_tls(stream, address, listener, limits.until).await?;
        if let (Some(own), Some(OriginalDst(dst))) = (&services.own_dials, accepted.original_dst)
            && own.has(address.socket(), dst)
        {
            let what = format!("egret's own connection to {dst} was led back to it");
            return Err(Refusal::at_claim(Reason::OwnAddress, &what).into());
        }
        let window = Window::new(services.peek_memory.share(address.ip()));
        Ok(Client::new(accepted, Arc::clone(listener), window))
    }
}

/// Waits until the log takes lines of this client's, where none may be lost; false if egret stops meanwhile.
pub(super) async fn may_begin(services: &Services, client: IpAddr, guard: &DrainGuard) -> bool {
    let room = async {
        services.access_log.room().await;
        services.access_log.room_for(client).await;
    };
    tokio::select! {
        biased;
        () = room => true,
        () = guard.stopping() => false,
    }
}
