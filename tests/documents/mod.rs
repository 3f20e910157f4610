//! The documents' tables as facts: which name or port, for which cloud and part, is printed.
//!
//! Serves the test that walks them and the tool that compares a newer document with the rule set.

#![allow(unreachable_pub, reason = "a module of a test and of a tool")]

/// One name or destination of one row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    /// `global`, `china`, `usgov`, or `any` where the document makes no difference.
    pub cloud: String,
    /// `required`, `recommended`, or a feature.
    pub part: String,
    /// As printed: `*.hcp.<location>.azmk8s.io`, `AzureCloud.<Region>`, `*`, `(none)`.
    pub printed: String,
    /// `https:443`, `udp:1194`.
    pub port: String,
}

/// What a document prints, in its order, each fact once.
pub fn facts(text: &str) -> Vec<Fact> {
    // Azure operated by 21Vianet has a document of its own, and the first edition knew one cloud.
    let own_cloud = if text.contains("login.partner.microsoftonline.cn") {
        Some("china")
    } else if text.contains("AKSLockingDownEgressPreview") {
        Some("global")
    } else {
        None
    };
    let japanese = text.contains("エグレス");
    let mut reader = Reader { own_cloud, headings: Vec::new(), facts: Vec::new(), pending: Vec::new(), bullet: None };
    for line in text.lines() {
        if japanese { reader.japanese(line) } else { reader.line(line) }
    }
    let mut seen = Vec::new();
    reader.facts.retain(|fact| {
        !seen.contains(fact) && {
            seen.push(fact.clone());
            true
        }
    });
    reader.facts
}

struct Reader {
    /// The whole document is one cloud's.
    own_cloud: Option<&'static str>,
    headings: Vec<(usize, String)>,
    facts: Vec<Fact>,
    /// Destinations whose protocol comes on a later line.
    pending: Vec<(String, String)>,
    /// The cloud of the list item the tables hang under.
    bullet: Option<&'static str>,
}

impl Reader {
    fn line(&mut self, line: &str) {
        let depth = line.bytes().take_while(|b| *b == b'#').count();
        if depth > 0 {
            self.headings.retain(|(d, _)| *d < depth);
            return self.headings.push((depth, line.trim_start_matches('#').trim().to_lowercase()));
        }
        if self.own_cloud == Some("china") {
            return self.plain(line);
        }
        if let Some(cells) = line.trim().strip_prefix('|') {
            return self.table_row(cells);
        }
        if let Some(fqdns) = option(line, "--destination-fqdns") {
            let port = option(line, "--destination-ports").unwrap_or_default().replace('\'', "");
            // The one for time is among the required rows already.
            let tcp = line.contains("'TCP'");
            let part = if line.contains("ghcr") { "github-registry" } else { "docker-registry" };
            for name in fqdns.split_whitespace().filter(|_| tcp) {
                self.add("any", part, name, format!("tcp:{}", port.trim()));
            }
        }
        if line.starts_with("* ") && line.contains("raffic towards") {
            for name in quoted(line) {
                let part = if name.starts_with("md-") { "managed-disks" } else { "vm-agent" };
                self.add("any", part, &name, "https:443".to_owned());
            }
        }
        // The first edition lists ports without destinations.
        if let Some(rest) = line.strip_prefix("* ") {
            for protocol in ["TCP", "UDP"] {
                if let Some(port) = rest.strip_prefix(&format!("{protocol} port *")).and_then(|r| r.split('*').next()) {
                    let part = self.part();
                    self.add("global", part, "(none)", format!("{}:{port}", protocol.to_lowercase()));
                }
            }
        }
    }

    fn table_row(&mut self, cells: &str) {
        let cells: Vec<&str> = cells.trim_end_matches('|').split('|').map(str::trim).collect();
        let Some(first) = cells.first().filter(|c| !c.starts_with("--") && !c.starts_with(":--")) else { return };
        let code: Vec<String> = first.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let names: Vec<String> = if code.is_empty() { vec![(*first).to_owned()] } else { code };
        let names = names
            .iter()
            .flat_map(|n| n.split(','))
            .map(str::trim)
            .filter(|n| n.contains(['.', ':']))
            .filter(|n| !n.contains(' '));
        let names: Vec<String> = names.map(str::to_owned).collect();
        let rest = cells.get(1..).unwrap_or_default().join(" | ");
        let web = ["HTTPS", "HTTP"]
            .into_iter()
            .find_map(|p| port_after(&rest, p).map(|port| format!("{}:{port}", p.to_lowercase())));
        let net = match (cells.get(1), cells.get(2)) {
            (Some(protocol @ (&"TCP" | &"UDP")), Some(port)) => Some(format!("{}:{port}", protocol.to_lowercase())),
            _ => None,
        };
        let bare = cells.last().filter(|c| **c == "443").map(|_| "https:443".to_owned());
        let Some(port) = web.or(net).or(bare) else { return };
        for name in names {
            let cloud = self.cloud_of(&name, first);
            let part = self.part();
            let name = destination(&name);
            self.add(cloud, part, &name, port.clone());
        }
    }

    /// A text whose tables have lost their lines: `NAME[, NAME] HTTPS:443 what for`.
    fn plain(&mut self, line: &str) {
        let lower = line.to_lowercase();
        if !line.contains(['.', ':']) || line.ends_with("rules") {
            if line.len() < 100 && part_of(&lower).is_some() {
                self.headings = vec![(1, lower)];
            }
            return;
        }
        if lower.contains("aren't required, but are recommended") {
            self.headings = vec![(1, "optional recommended".to_owned())];
        }
        if line.contains("raffic towards") {
            for name in line.split(['"', '“', '”']).skip(1).step_by(2) {
                let part = if name.starts_with("md-") { "managed-disks" } else { "vm-agent" };
                self.add("china", part, name, "https:443".to_owned());
            }
            return;
        }
        let part = self.part();
        let web = ["HTTPS", "HTTP"]
            .into_iter()
            .find_map(|p| line.split_once(&format!(" {p}:")).map(|(names, rest)| (p, names, rest)));
        if let Some((protocol, names, rest)) = web {
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            for name in names.split([',', ' ']).filter(|n| n.contains('.')) {
                self.add("china", part, name, format!("{}:{port}", protocol.to_lowercase()));
            }
            return;
        }
        // Destinations by address; the protocol is on the same line or on one below.
        for word in line.split_whitespace().filter(|w| !w.starts_with('(')) {
            if let Some((to, port)) =
                word.rsplit_once(':').filter(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
            {
                self.pending.push((to.to_owned(), port.to_owned()));
            }
        }
        for protocol in ["UDP", "TCP"] {
            let Some(port) = line
                .split(&format!("{protocol} "))
                .nth(1)
                .map(|r| r.chars().take_while(char::is_ascii_digit).collect::<String>())
            else {
                continue;
            };
            let (now, later) = std::mem::take(&mut self.pending).into_iter().partition(|(_, p)| *p == port);
            self.pending = later;
            let now: Vec<(String, String)> = now;
            for (to, port) in now {
                self.add(
                    "china",
                    part,
                    &destination(&format!("{to}:{port}")),
                    format!("{}:{port}", protocol.to_lowercase()),
                );
            }
            return;
        }
        if let Some((name, _)) = line.split_once(' ').filter(|(name, _)| line.ends_with(" 443") && name.contains('.')) {
            self.add("china", part, name, "https:443".to_owned());
        }
    }

    /// Every sentence and cell stands there twice, in two languages and without a gap.
    fn japanese(&mut self, line: &str) {
        const CLOUDS: &[(&str, &str)] = &[
            ("Azure GlobalAzure Global", "global"),
            ("Azure ChinaAzure China", "china"),
            ("Azure GovernmentAzure Government", "usgov"),
        ];
        if let Some((_, cloud)) = CLOUDS.iter().find(|(text, _)| line.contains(text)) {
            self.bullet = Some(cloud);
        }
        const PARTS: &[(&str, &str)] = &[
            ("outbound ports / network rules are required", "required"),
            ("rules are recommended for AKS clusters", "optional recommended"),
            ("required addresses and ports for gpu", "gpu"),
            ("with azure monitor", "monitor"),
            ("with azure dev spaces", "dev spaces"),
            ("with azure policy (in public preview) enabled", "azure policy"),
            ("required by windows server", "windows"),
        ];
        let lower = line.to_lowercase();
        if let Some((_, heading)) = PARTS.iter().find(|(text, _)| lower.contains(&text.to_lowercase())) {
            self.headings = vec![(1, (*heading).to_owned())];
            if !matches!(*heading, "required") {
                self.bullet = None;
            }
        }
        let part = self.part();
        if line.contains("[IPAddrOfYourAPIServer]:443") {
            return self.add("any", part, "APIServerPublicIP", "tcp:443".to_owned());
        }
        if line.trim_start().starts_with('•') && line.contains("port ") && part == "required" {
            for (protocol, port) in [("TCP", "443"), ("TCP", "9000"), ("TCP", "22"), ("UDP", "53")] {
                let english = line.split(['。']).next_back().unwrap_or_default();
                if english.contains(&format!("{protocol} port {port}")) {
                    self.add("any", part, "(none)", format!("{}:{port}", protocol.to_lowercase()));
                }
            }
            return;
        }
        let Some((names, ports)) = line
            .split_once(" HTTP")
            .map(|(n, p)| (n, format!("HTTP{p}")))
            .or_else(|| line.split_once(" UDP:").map(|(n, p)| (n, format!("UDP:{p}"))))
            .or_else(|| line.split_once(" TCP:").map(|(n, p)| (n, format!("TCP:{p}"))))
        else {
            return;
        };
        if line.contains('。')
            && !line.contains("443")
            && !line.contains(":80")
            && !line.contains("123")
            && !line.contains("1688")
        {
            return;
        }
        let english = second_half(names);
        let ports = ports.split(['こ', 'コ', 'W', '正', 'A', 'L']).next().unwrap_or_default().to_owned();
        let mut found = Vec::new();
        for protocol in ["HTTPS", "HTTP", "TCP", "UDP"] {
            let mut rest = ports.as_str();
            while let Some(at) = rest.find(protocol) {
                let after = &rest[at + protocol.len()..];
                let port: String =
                    after.trim_start_matches([':', ' ']).chars().take_while(char::is_ascii_digit).collect();
                if after.starts_with(':') && !port.is_empty() {
                    let port = format!("{}:{port}", protocol.to_lowercase());
                    if !found.contains(&port) {
                        found.push(port);
                    }
                }
                rest = after;
            }
        }
        let cloud = if part == "required" { self.bullet } else { None };
        for name in english.split([',', '、']).map(str::trim).filter(|n| n.contains('.') && n.is_ascii()) {
            let cloud =
                cloud.unwrap_or(if matches!(part, "azure-monitor" | "azure-policy") { "global" } else { "any" });
            for port in &found {
                self.add(cloud, part, name, port.clone());
            }
        }
    }

    fn add(&mut self, cloud: &str, part: &str, printed: &str, port: String) {
        let printed = printed.replace("AzureCloud.Region", "AzureCloud.<Region>").replace("http:", "");
        self.facts.push(Fact { cloud: cloud.to_owned(), part: part.to_owned(), printed, port });
    }

    fn part(&self) -> &'static str {
        part_of(&self.path()).unwrap_or("required")
    }

    fn path(&self) -> String {
        self.headings.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(" / ")
    }

    /// The heading's cloud; in a part that serves several, the name's.
    fn cloud_of(&self, name: &str, cell: &str) -> &'static str {
        if let Some(cloud) = self.own_cloud {
            return cloud;
        }
        let path = self.path();
        if path.contains("21vianet") || path.contains("azure china") {
            return "china";
        }
        if path.contains("government") {
            return "usgov";
        }
        let several = cell.contains("Government)")
            || cell.contains("(Mooncake)")
            || cell.contains("login.chinacloudapi.cn`")
            || name.contains("usgov");
        match self.part() {
            "gpu" | "windows" | "recommended" => "any",
            _ if name.starts_with("AzureMonitor") || name == "*.cloud.defender.microsoft.com" => "any",
            _ if several && name.ends_with(".cn") => "china",
            _ if several && (name.ends_with(".us") || name.contains("usgov")) => "usgov",
            _ => "global",
        }
    }
}

/// The part that a heading is about.
fn part_of(heading: &str) -> Option<&'static str> {
    const PARTS: &[(&str, &str)] = &[
        ("gpu", "gpu"),
        ("windows", "windows"),
        ("workload identity", "workload-identity"),
        ("defender for containers", "defender"),
        ("secret", "key-vault"),
        ("monitor", "azure-monitor"),
        ("azure policy", "azure-policy"),
        ("cost analysis", "cost-analysis"),
        ("extensions", "cluster-extensions"),
        ("dev spaces", "dev-spaces"),
        ("optional recommended", "recommended"),
    ];
    PARTS.iter().find(|(word, _)| heading.contains(word)).map(|(_, part)| *part)
}

/// `*:1194` and `AzureCloud.<Region>:1194` without the port that stands beside them.
fn destination(name: &str) -> String {
    match name.rsplit_once(':') {
        Some((to, port)) if !to.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => to.to_owned(),
        _ => name.to_owned(),
    }
}

fn quoted(line: &str) -> Vec<String> {
    line.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

fn option<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = line.split_once(name)?.1;
    Some(rest.split(" --").next().unwrap_or(rest).trim())
}

fn port_after(text: &str, protocol: &str) -> Option<String> {
    let rest = text.split_once(&format!("{protocol}:"))?.1.trim_start();
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (!port.is_empty()).then_some(port)
}

/// `mcr.microsoft.commcr.microsoft.com` is one name twice.
fn second_half(text: &str) -> &str {
    let squeezed = |s: &str| s.replace(['、', ' ', ','], "");
    for (at, _) in text.char_indices() {
        let (a, b) = text.split_at(at);
        if squeezed(a) == squeezed(b) {
            return b;
        }
    }
    text
}

/// Whether a row of the rule set stands for a fact, as it is printed or as it is meant.
pub fn says(row: &egret::bundle::Row, fact: &Fact) -> bool {
    let part = match fact.part.as_str() {
        "required" => row.features.is_empty() && row.need.as_str() == "required",
        "recommended" => row.features.is_empty() && row.need.as_str() == "recommended",
        "azure-monitor" => row.features.iter().any(|f| f.contains("insights") || f.contains("prometheus")),
        feature => row.features.iter().any(|f| f == feature),
    };
    let to = match fact.printed.as_str() {
        "(none)" => row.fqdns.is_empty() && row.destinations.is_empty(),
        "APIServerPublicIP" => row.destinations.iter().any(|d| d == "api_server"),
        "RegionCIDRs" => row.destinations.iter().any(|d| d == "region_cidrs"),
        "CustomDNSIP" => row.destinations.iter().any(|d| d == "dns_servers"),
        "AzureCloud.<Region>" => row.destinations.iter().any(|d| d == "AzureCloud.<location>"),
        name => {
            let is = |word: &String| word == name || word.split([' ']).any(|w| w == name);
            row.fqdns.iter().chain(&row.wildcards).chain(&row.destinations).chain(&row.printed).any(is)
        }
    };
    // A port that is a slip of the print stands among what is printed.
    let port = row.protocols.contains(&fact.port)
        || row.printed.iter().any(|p| p.to_lowercase() == fact.port || p.starts_with(&format!("{} ", fact.port)));
    part && to && port
}
