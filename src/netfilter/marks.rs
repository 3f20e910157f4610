//! What a conntrack mark says of its flow.

/// The state in a mark, in its highest byte; what is below is the rule's place.
pub const STATE: u32 = 0xff00_0000;

/// The flow comes to egret's transparent listener.
pub const CAPTURED: u32 = 0xe900_0000;

/// The flow's questions come to egret's `dns` listener.
pub const ASKING: u32 = 0xe800_0000;

/// The flow is let through by address.
pub const FORWARDED: u32 = 0xea00_0000;

/// Slots of flows that no network rule let through.
pub const BYPASSED: u32 = FORWARDED | 0x00ff_fffe;
pub const INGRESS: u32 = FORWARDED | 0x00ff_fffd;

/// Ingress whose client sees where it comes from.
pub const INGRESS_PLAIN: u32 = FORWARDED | 0x00ff_fffc;
