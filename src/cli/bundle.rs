//! `egret bundle`: what the built-in rule sets hold, and what changed in them.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::error::CommandError;
use crate::bundle::{self, Bundle, Change, Closed, Level, Opening, Parameters, Row, Selection, Why};
use crate::config;

/// Where nodes reach egret, unless configured otherwise.
const SOMEWHERE: &str = "http://egret:3128";

#[derive(Debug, Subcommand)]
pub(super) enum BundleCommand {
    /// Rule sets with their clouds, editions and features
    List {
        #[arg(long, value_enum, default_value_t)]
        format: Plain,
    },
    /// The rules for one cluster, with their purposes
    Show(Box<Show>),
    /// Rows added, removed and changed between two editions (dates, or latest)
    Diff {
        bundle: String,
        old: String,
        new: String,
        /// Only this cloud's rows
        #[arg(long)]
        cloud: Option<String>,
        #[arg(long, value_enum, default_value_t)]
        format: Plain,
    },
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum Plain {
    #[default]
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    #[default]
    Table,
    /// Rules for a configuration file
    Yaml,
    Json,
    /// AKS's own setting for an HTTP proxy
    AksHttpProxy,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    wishes: Wishes,
    /// Without a bundle's name: those of this configuration, as it asks for them
    #[arg(long, value_name = "FILE", env = "EGRET_CONFIG")]
    config: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// aks-http-proxy: where nodes reach a forward listener
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
    /// aks-http-proxy: names and CIDRs that go around the proxy, such as the VNet and the service CIDR
    #[arg(long, value_name = "X,…", value_delimiter = ',')]
    no_proxy: Vec<String>,
    /// aks-http-proxy: PEM file of an authority that nodes shall trust
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// A bundle's parameters as options.
#[derive(Debug, Args)]
struct Wishes {
    /// Such as aks; without it, those of a configuration
    bundle: Option<String>,
    /// global, china or usgov
    #[arg(long, default_value = "global")]
    cloud: String,
    /// The region, or any
    #[arg(long, default_value = "any")]
    location: String,
    #[command(flatten)]
    cluster: Cluster,
    /// A date, or latest
    #[arg(long, default_value = "latest")]
    edition: String,
    /// Where the old tunnel leads, if not to the API server
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    region_cidrs: Vec<String>,
    /// false opens the old tunnel
    #[arg(long, value_name = "BOOL")]
    konnectivity: Option<bool>,
    /// false closes what is recommended and not required
    #[arg(long, value_name = "BOOL")]
    include_recommended: Option<bool>,
    /// No node needs NTP in the global cloud
    #[arg(long)]
    nodes_after_march_2021: bool,
    /// Azure Monitor by service tag
    #[arg(long)]
    monitor_by_tag: bool,
    /// Rows whose `*` is meant
    #[arg(long, value_name = "ROW,…", value_delimiter = ',')]
    any_destination: Vec<String>,
}

impl BundleCommand {
    /// What is to be printed, and what is to be said beside it.
    pub(super) fn answer(self) -> Result<(String, String), CommandError> {
        let answer = match self {
            Self::List { format } => list(format).map(|text| (text, String::new())),
            Self::Show(show) => show.answer(),
            Self::Diff { bundle, old, new, cloud, format } => diff(&bundle, &old, &new, cloud.as_deref(), format),
        };
        answer.map_err(CommandError::Usage)
    }
}

fn list(format: Plain) -> Result<String, String> {
    let all = bundle::all()?;
    if let Plain::Json = format {
        let bundles: Vec<Value> = all.iter().map(listed).collect();
        return Ok(format!("{:#}\n", json!({ "bundles": bundles })));
    }
    let mut out = String::new();
    for bundle in all {
        let _ = writeln!(out, "{}", bundle.name);
        let also = |also: &[String]| match also {
            [] => String::new(),
            also => format!(" (also {})", also.join(", ")),
        };
        let clouds: Vec<&str> = bundle.clouds.keys().map(String::as_str).collect();
        let _ = writeln!(out, "  clouds    {}", clouds.join(", "));
        for (name, cloud) in &bundle.clouds {
            let _ = writeln!(out, "            {name}{}", also(&cloud.also));
        }
        let dates: Vec<String> = bundle.editions.iter().map(|edition| edition.date.to_string()).collect();
        let _ = writeln!(out, "  editions  {}", dates.join(", "));
        out.push_str("  features\n");
        for (name, feature) in &bundle.features {
            let _ = writeln!(out, "    {name:<21} {}{}", feature.about, also(&feature.also));
        }
    }
    Ok(out)
}

fn listed(bundle: &Bundle) -> Value {
    let clouds = bundle.clouds.iter().map(|(name, cloud)| {
        let locations: Vec<&str> = cloud.locations().map(|(name, _)| name).collect();
        json!({ "name": name, "also": cloud.also, "locations": locations })
    });
    let features = bundle
        .features
        .iter()
        .map(|(name, f)| json!({ "name": name, "about": f.about, "also": f.also, "includes": f.includes }));
    let editions = bundle
        .editions
        .iter()
        .map(|e| json!({ "date": e.date.to_string(), "source": bundle.sources.get(&e.source), "note": e.note }));
    json!({
        "name": bundle.name,
        "clouds": clouds.collect::<Vec<_>>(),
        "features": features.collect::<Vec<_>>(),
        "editions": editions.collect::<Vec<_>>(),
    })
}

impl Show {
    fn answer(self) -> Result<(String, String), String> {
        let Some(name) = &self.wishes.bundle else { return self.of_configuration() };
        let mut said = String::new();
        let text = self.shown(&self.wishes.asked(name), &mut said)?;
        Ok((text, said))
    }

    fn of_configuration(&self) -> Result<(String, String), String> {
        if self.wishes.are_said() {
            return Err(
                "these options go with a bundle's name, as in `egret bundle show aks`; a configuration has its own"
                    .to_owned(),
            );
        }
        let path = self.config.as_ref().ok_or("which bundle? write `egret bundle show aks`, or --config FILE")?;
        let (mut text, mut said) = (String::new(), String::new());
        let all = config::bundles(path)?;
        if all.is_empty() {
            return Err(format!("{}: there are no bundles in it (policy.bundles)", path.display()));
        }
        for (at, asked) in all.iter().enumerate() {
            let _ = writeln!(said, "{}: policy.bundles[{at}]", path.display());
            text.push_str(if at > 0 { "\n" } else { "" });
            text.push_str(&self.shown(asked, &mut said)?);
        }
        Ok((text, said))
    }

    /// The rules of one bundle as they are asked for, and what is to be said beside them.
    fn shown(&self, asked: &Parameters, said: &mut String) -> Result<String, String> {
        let bundle = bundle::named(&asked.bundle)?;
        let mut remarks = Vec::new();
        let choice = bundle.choose(asked, |_| false, &mut remarks);
        for remark in &remarks {
            let level = match remark.level {
                Level::Fault => "error",
                Level::Warning => "warning",
                Level::Note => "note",
            };
            let _ = writeln!(said, "{level}: --{}: {}", remark.key.replace('_', "-"), remark.message);
        }
        let choice = choice.ok_or_else(|| said.trim_end().to_owned())?;
        Ok(match self.format {
            Format::Table => table(&choice),
            Format::Yaml => yaml(&choice),
            Format::Json => format!("{:#}\n", as_json(&choice)),
            Format::AksHttpProxy => {
                if self.proxy.is_none() {
                    let _ = writeln!(said, "note: --proxy: say where nodes reach egret; {SOMEWHERE} stands for it");
                }
                format!("{:#}\n", self.http_proxy()?)
            }
        })
    }

    /// AKS, HTTP proxy: the file for `az aks create --http-proxy-config`.
    fn http_proxy(&self) -> Result<Value, String> {
        let proxy = self.proxy.as_deref().unwrap_or(SOMEWHERE);
        if !proxy.starts_with("http://") {
            return Err(format!("--proxy: `{proxy}` does not begin with http://, which AKS asks for"));
        }
        let wild = self.no_proxy.iter().find(|word| word.contains('*'));
        if let Some(word) = wild {
            return Err(format!("--no-proxy: `{word}`: AKS takes no `*`; write a domain, an address or a CIDR"));
        }
        let around = ["localhost", "127.0.0.1", "168.63.129.16", "169.254.169.254"];
        let around: Vec<&str> = around.into_iter().chain(self.no_proxy.iter().map(String::as_str)).collect();
        let read = |path: &PathBuf| {
            let pem = std::fs::read(path).map_err(|e| format!("--ca: cannot read {}: {e}", path.display()))?;
            if pem.windows(27).any(|w| w == b"-----BEGIN CERTIFICATE-----") {
                Ok(data_encoding::BASE64.encode(&pem))
            } else {
                Err(format!("--ca: {} holds no certificate in PEM", path.display()))
            }
        };
        let authority = self.ca.as_ref().map(read).transpose()?;
        Ok(json!({ "httpProxy": proxy, "httpsProxy": proxy, "noProxy": around, "trustedCa": authority }))
    }
}

impl Wishes {
    /// Whether any parameter was given.
    fn are_said(&self) -> bool {
        (&*self.cloud, &*self.location, &*self.edition) != ("global", "any", "latest")
            || self.cluster != Cluster::default()
            || !(self.region_cidrs.is_empty() && self.any_destination.is_empty())
            || self.konnectivity.is_some()
            || self.include_recommended.is_some()
            || self.nodes_after_march_2021
            || self.monitor_by_tag
    }

    fn asked(&self, bundle: &str) -> Parameters {
        Parameters {
            cloud: Some(self.cloud.clone()),
            edition: Some(self.edition.clone()),
            include_recommended: self.include_recommended,
            konnectivity: self.konnectivity,
            nodes_after_march_2021: Some(self.nodes_after_march_2021),
            region_cidrs: self.region_cidrs.clone(),
            monitor_by_tag: Some(self.monitor_by_tag),
            any_destination: self.any_destination.clone(),
            ..self.cluster.asked(bundle, &self.location)
        }
    }
}

/// One row's way out: what it opens, in words of the configuration.
fn opens(opening: &Opening) -> Vec<String> {
    match opening {
        Opening::Names(names) | Opening::AddressesOf(names) | Opening::DnsOnly(names) => names.clone(),
        Opening::Addresses(destinations) => destinations.iter().map(ToString::to_string).collect(),
    }
}

fn table(choice: &Selection<'_>) -> String {
    let location = choice.location.as_deref().unwrap_or("any");
    let features: Vec<&str> = choice.features.iter().copied().collect();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    let mut out = format!(
        "{} in {} at {location}, edition {}, features: {features}\n",
        choice.bundle.name, choice.cloud_name, choice.edition
    );
    let (mut open, mut closed) = (String::new(), String::new());
    for row in choice.rows() {
        let name = choice.rule_name(&row);
        match &row.opening {
            Ok(opening) => {
                let _ = writeln!(open, "\n{name}  ({})", row.need.as_str());
                let _ = writeln!(open, "  opens    {} on {}", opens(opening).join(", "), row.protocols.join(", "));
                let _ = writeln!(open, "  for      {}", row.purpose);
                if let Some(because) = &row.because {
                    let _ = writeln!(open, "  printed  {}: {because}", row.printed.join(", "));
                }
                let source = choice.bundle.sources.get(&row.source).map_or(row.source.as_str(), String::as_str);
                let _ = writeln!(open, "  from     {source}, since {}", row.since);
            }
            Err(Closed { why: Why::Parameter(why), .. }) => drop(writeln!(closed, "  {name:<34} {why}")),
            // What was not asked for stands in `bundle list`.
            Err(Closed { why: Why::NotAsked, .. }) => {}
            Err(Closed { why: Why::Expected, .. }) => {
                let feature = row.features.join(", ");
                let _ = writeln!(closed, "  {name:<34} happens, and nothing needs it; feature {feature} opens it");
            }
        }
    }
    out.push_str(&open);
    if !closed.is_empty() {
        let _ = write!(out, "\nclosed\n{closed}");
    }
    out
}

/// Rules that `policy` of a configuration file takes.
fn yaml(choice: &Selection<'_>) -> String {
    let (mut apps, mut nets) = (String::new(), String::new());
    for row in choice.rows() {
        let Ok(opening) = &row.opening else { continue };
        let name = choice.rule_name(&row);
        let head = format!("    # {}\n    - name: \"{name}\"\n", row.purpose);
        let list = |words: &[String]| format!("{words:?}");
        let protocols = list(&row.protocols);
        let opened = opens(opening);
        match opening {
            Opening::Names(_) => {
                let _ = write!(apps, "{head}      fqdns: {}\n      protocols: {protocols}\n", list(&opened));
            }
            Opening::AddressesOf(_) => {
                let _ = write!(nets, "{head}      fqdns: {}\n      protocols: {protocols}\n", list(&opened));
            }
            Opening::Addresses(all) if all.iter().any(|d| matches!(d, bundle::Destination::Kept(_))) => {
                let _ = writeln!(
                    nets,
                    "    # {name}: {} by address, which only the bundle keeps up to date",
                    opened.join(", ")
                );
            }
            Opening::Addresses(_) => {
                let _ = write!(nets, "{head}      destinations: {}\n      protocols: {protocols}\n", list(&opened));
            }
            Opening::DnsOnly(_) => {
                let _ = writeln!(apps, "    # {name}: {} in DNS only, which only the bundle has", opened.join(", "));
            }
        }
    }
    let mut out = format!(
        "# {} in {}, edition {}. Without `sources` a rule is for every client that reaches the listener.\npolicy:\n",
        choice.bundle.name, choice.cloud_name, choice.edition
    );
    for (key, rules) in [("application_rules", apps), ("network_rules", nets)] {
        if rules.contains("- name") {
            let _ = write!(out, "  {key}:\n{rules}");
        } else if !rules.is_empty() {
            let _ = write!(out, "  {key}: []\n{rules}");
        }
    }
    out
}

fn as_json(choice: &Selection<'_>) -> Value {
    let (mut rules, mut closed) = (Vec::new(), Vec::new());
    for row in choice.rows() {
        let mut entry = json!({
            "rule": choice.rule_name(&row),
            "need": row.need.as_str(),
            "features": row.features,
            "source": choice.bundle.sources.get(&row.source),
            "since": row.since.to_string(),
            "protocols": row.protocols,
            "purpose": row.purpose,
        });
        let mut put =
            |key: &str, value: Value| drop(entry.as_object_mut().map(|map| map.insert(key.to_owned(), value)));
        if !row.printed.is_empty() {
            put("printed", json!(row.printed));
        }
        if let Some(because) = &row.because {
            put("because", json!(because));
        }
        match &row.opening {
            Ok(opening) => {
                let key = match opening {
                    Opening::Names(_) | Opening::AddressesOf(_) | Opening::DnsOnly(_) => "fqdns",
                    Opening::Addresses(_) => "destinations",
                };
                put(key, json!(opens(opening)));
                rules.push(entry);
            }
            Err(Closed { why: Why::NotAsked, .. }) => {}
            Err(Closed { why: Why::Parameter(why), names }) => {
                put("fqdns", json!(names));
                put("why", json!(why));
                closed.push(entry);
            }
            Err(Closed { why: Why::Expected, names }) => {
                put("fqdns", json!(names));
                put("why", json!("nothing depends on it; its feature opens it"));
                put("expected", json!(true));
                closed.push(entry);
            }
        }
    }
    json!({
        "bundle": choice.bundle.name,
        "cloud": choice.cloud_name,
        "location": choice.location.as_deref().unwrap_or("any"),
        "edition": choice.edition.to_string(),
        "features": choice.features,
        "rules": rules,
        "closed": closed,
    })
}

fn diff(name: &str, old: &str, new: &str, cloud: Option<&str>, format: Plain) -> Result<(String, String), String> {
    let bundle = bundle::named(name)?;
    let cloud = cloud.map(|word| bundle.cloud(word)).transpose()?.map(|(name, _)| name);
    let mut said = String::new();
    let mut date = |written: &str| {
        let edition = bundle.edition(written)?;
        if written != "latest" && edition.date.to_string() != written {
            let _ = writeln!(said, "note: the edition in force on {written} is that of {}", edition.date);
        }
        Ok::<_, String>(&edition.date)
    };
    let (old, new) = (date(old)?, date(new)?);
    let mut changes = bundle::diff(bundle, old, new);
    changes.retain(|change| cloud.is_none_or(|cloud| change.cloud == cloud));
    let text = match format {
        Plain::Json => {
            let list = |kind: &str| -> Vec<Value> {
                changes.iter().filter(|change| change.kind() == kind).map(change_json).collect()
            };
            let all = json!({
                "bundle": name,
                "old": old.to_string(),
                "new": new.to_string(),
                "added": list("added"),
                "removed": list("removed"),
                "changed": list("changed"),
            });
            format!("{all:#}\n")
        }
        Plain::Table => {
            let mut out = format!("{name} from {old} to {new}\n");
            if changes.is_empty() {
                out.push_str("nothing changed\n");
            }
            for change in &changes {
                let _ = writeln!(out, "{:<8} {:<7} {}", change.kind(), change.cloud, change.id);
                for (sign, row) in [("-", change.old), ("+", change.new)] {
                    if let Some(row) = row {
                        let _ = writeln!(out, "         {sign} {}", row_text(row));
                    }
                }
            }
            out
        }
    };
    Ok((text, said))
}

fn row_text(row: &Row) -> String {
    let to: Vec<&str> = row.fqdns.iter().chain(&row.destinations).map(String::as_str).collect();
    let to = if to.is_empty() { "(no destination)".to_owned() } else { to.join(", ") };
    let features = if row.features.is_empty() { String::new() } else { format!(", for {}", row.features.join(", ")) };
    format!("{to} on {} ({}{features})", row.protocols.join(", "), row.need.as_str())
}

fn change_json(change: &Change<'_>) -> Value {
    let row = |row: &Row| {
        json!({
            "fqdns": row.fqdns,
            "destinations": row.destinations,
            "protocols": row.protocols,
            "need": row.need.as_str(),
            "features": row.features,
            "purpose": row.purpose,
        })
    };
    json!({ "cloud": change.cloud, "id": change.id, "old": change.old.map(row), "new": change.new.map(row) })
}
