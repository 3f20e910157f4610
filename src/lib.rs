//! egret: an egress firewall by name.
//!
//! A connection is accepted, claims a destination, shows its first bytes, is judged by name, resolved,
//! judged by address, dialled and relayed untouched; then its one record is written. `session` tells that
//! story; every other module is a room it walks through, and ARCHITECTURE.md is the map.

#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

pub mod admin;
pub mod app;
pub mod budget;
pub mod bundle;
pub mod cli;
pub mod config;
pub mod control;
pub mod dns;
pub mod drain;
pub mod files;
pub mod identity;
pub mod learn;
pub mod local;
pub mod metrics;
pub mod netfilter;
pub mod netlink;
pub mod netlog;
pub mod privileges;
pub mod proxy;
pub mod record;
pub mod reload;
pub mod socket;
