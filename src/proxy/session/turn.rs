//! One claim's turn on a connection.

use crate::drain::DrainGuard;
use crate::proxy::listen::Client;
use crate::proxy::peek::PeekLimits;
use crate::proxy::services::Services;
use crate::record::Record;

/// What serving one claim takes.
pub(super) struct Turn<'a> {
    pub(super) client: &'a mut Client,
    pub(super) record: &'a mut Record,
    pub(super) services: &'a Services,
    pub(super) guard: &'a DrainGuard,
    /// Of what the client must show.
    pub(super) limits: PeekLimits,
}
