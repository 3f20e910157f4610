//! Names and their addresses that are asked before any server: of the configuration, and of a file in the form of hosts(5).

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::files::{FileFault, Files, read_regular};
use egret_core::name::HostName;

/// The file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostsFile(pub PathBuf);

/// Addresses by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(HashMap<HostName, Vec<IpAddr>>);

impl Hosts {
    /// The addresses of a name, in the order of the file.
    #[must_use]
    pub fn get(&self, name: &HostName) -> Option<&[IpAddr]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// Lines are an address and names; what follows `#` is a comment.
    fn parse(text: &str) -> Result<Self, String> {
        /// Faults that are listed one by one.
        const MAX_FAULTS: usize = 10;
        let (mut hosts, mut faults) = (Self::default(), Vec::new());
        for (number, line) in (1..).zip(text.lines()) {
            if let Err(fault) = hosts.line(line) {
                faults.push(format!("line {number}: {fault}"));
            }
        }
        let more = faults.len().saturating_sub(MAX_FAULTS);
        faults.truncate(MAX_FAULTS);
        if more > 0 {
            faults.push(format!("and {more} more"));
        }
        if faults.is_empty() { Ok(hosts) } else { Err(faults.join("; ")) }
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        const CURE: &str = "write lines such as 10.1.0.4 db.example.com";
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        // An address of one link only (RFC 4007 §11) leads nowhere from here.
        let Some(address) = words.next().filter(|address| !address.contains('%')) else { return Ok(()) };
        let ip: IpAddr = address.parse().map_err(|_| format!("`{address}` is not an IP address; {CURE}"))?;
        let mut names = words.peekable();
        if names.peek().is_none() {
            return Err(format!("`{address}` has no name; {CURE}"));
        }
        for word in names {
            let name = HostName::from_wire(word.as_bytes()).map_err(|_| format!("`{word}` is not a host name"))?;
            self.add(name, ip);
        }
        Ok(())
    }

    /// Gives a name one more address.
    pub fn add(&mut self, name: HostName, ip: IpAddr) {
        let known = self.0.entry(name).or_default();
        if !known.contains(&ip) {
            known.push(ip);
        }
    }
}

impl Files for HostsFile {
    type Made = Hosts;

    fn paths(&self) -> Vec<&Path> {
        vec![&self.0]
    }

    fn load(&self) -> Result<Hosts, FileFault> {
        let fault = |message| FileFault { key: "", message };
        let text = read_regular(&self.0).map_err(fault)?;
        Hosts::parse(&text).map_err(|why| fault(format!("{}: {why}", self.0.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_all_their_addresses() {
        let hosts = Hosts::parse(
            "# made by a tool\n127.0.0.1 localhost\n::1\tlocalhost ip6-localhost # both\n\nfe80::1%lo0 localhost\n10.1.0.4 DB.Example.com. db\n",
        );
        let hosts = hosts.unwrap();
        let of = |name: &str| {
            let found = hosts.get(&HostName::from_wire(name.as_bytes()).unwrap());
            found.map(|ips| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(of("localhost").as_deref(), Some("127.0.0.1 ::1"));
        assert_eq!(of("db.example.com").as_deref(), Some("10.1.0.4"));
        assert_eq!(of("db").as_deref(), Some("10.1.0.4"));
        assert_eq!(of("example.com"), None);
        for (line, says) in
            [("db 10.1.0.4", "line 1: `db` is not an IP address"), ("10.1.0.4 a..b", "is not a host name")]
        {
            assert!(Hosts::parse(line).unwrap_err().contains(says), "{line}");
        }
    }
}
