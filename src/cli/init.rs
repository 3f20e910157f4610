//! `egret init aks`: from a few answers to a checked configuration, and the `az` commands around it.

use std::fmt::Write as _;
use std::io::{BufRead as _, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ipnet::Ipv4Net;

use super::cluster::Cluster;
use super::common::complain;
use super::error::CommandError;
use crate::bundle::{self, Level, Parameters, Selection};
use crate::config::Settings;
use egret_core::rule::prefixes::prefix;

/// The service CIDR that AKS takes by default.
const SERVICES: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16);

#[derive(Debug, Subcommand)]
pub(super) enum InitCommand {
    /// For an AKS cluster; asks for what is missing of region and subnets
    Aks(Box<Aks>),
}

#[derive(Debug, Args)]
pub(super) struct Aks {
    /// global, china or usgov
    #[arg(long)]
    cloud: Option<String>,
    /// The cluster's region, such as westeurope
    #[arg(long)]
    location: Option<String>,
    /// The subnets of nodes and pods, the nodes' first
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    subnets: Vec<String>,
    #[command(flatten)]
    cluster: Cluster,
    /// egret's own address in the network, in a subnet of its own
    #[arg(long, value_name = "IP", default_value = "10.225.0.4")]
    address: Ipv4Addr,
    /// Write the configuration here, and only the commands to stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl InitCommand {
    /// What is to be printed.
    pub(super) fn answer(self) -> Result<String, CommandError> {
        let Self::Aks(mut aks) = self;
        if let Some(path) = aks.output.as_ref().filter(|path| path.exists()) {
            let message = format!("--output: {} is there already; give a place that is free", path.display());
            return Err(CommandError::Usage(message));
        }
        aks.ask()?;
        let bundle = bundle::named("aks").map_err(CommandError::Usage)?;
        let mut remarks = Vec::new();
        let asked = aks.asked();
        let choice = bundle.choose(&asked, |_| false, &mut remarks);
        let mut said = String::new();
        for remark in remarks.iter().filter(|remark| remark.level != Level::Note) {
            let _ = writeln!(said, "--{}: {}", remark.key.replace('_', "-"), remark.message);
        }
        let Some(choice) = choice else { return Err(CommandError::Usage(said.trim_end().to_owned())) };
        complain(&said);
        let plan = aks.plan(&choice).map_err(CommandError::Usage)?;
        let text = plan.configuration();
        // What is printed as checked has been.
        Settings::parse(&text, "egret.yaml", Path::new("."))?;
        let commands = plan.commands();
        let Some(path) = &aks.output else {
            let commented = commands.lines().map(|line| format!("# {line}").trim_end().to_owned() + "\n");
            return Ok(format!("{text}\n# ---- the commands around it ----\n{}", commented.collect::<String>()));
        };
        let mut file = std::fs::File::create_new(path)
            .map_err(|e| CommandError::Usage(format!("--output: cannot write {}: {e}", path.display())))?;
        file.write_all(text.as_bytes())?;
        Ok(commands)
    }
}

impl Aks {
    /// The short dialogue: only where region or subnets are missing.
    fn ask(&mut self) -> Result<(), CommandError> {
        if self.location.is_some() && !self.subnets.is_empty() {
            return Ok(());
        }
        if self.cloud.is_none() && self.location.is_none() {
            self.cloud = Some(question("Cloud (global, china, usgov) [global]")?).filter(|answer| !answer.is_empty());
        }
        if self.location.is_none() {
            self.location = Some(question("Region, such as westeurope")?);
        }
        let list = |text: String| -> Vec<String> {
            text.split([',', ' ']).map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        if self.subnets.is_empty() {
            self.subnets = list(question("Subnets of nodes and pods, such as 10.224.0.0/16")?);
        }
        if self.cluster.api_server.is_empty() {
            self.cluster.api_server = list(question("The API server's FQDN (empty: not known yet)")?);
        }
        if self.cluster.features.is_empty() {
            self.cluster.features = list(question("Features, as `egret bundle list` prints them (empty: none)")?);
        }
        if self.cluster.registries.is_empty() {
            self.cluster.registries = list(question("Your own container registries (empty: none)")?);
        }
        Ok(())
    }

    fn asked(&self) -> Parameters {
        let addresses = self.addresses();
        let location = self.location.as_deref().unwrap_or_default();
        Parameters { cloud: self.cloud.clone(), addresses, ..self.cluster.asked("aks", location) }
    }

    /// A private API server's name leads inside.
    fn addresses(&self) -> Option<Vec<String>> {
        let inside = self.is_private() && !self.cluster.api_server.is_empty();
        inside.then(|| std::iter::once("public".to_owned()).chain(self.subnets.iter().cloned()).collect())
    }

    const fn is_private(&self) -> bool {
        self.cluster.private_cluster || self.cluster.network_isolated
    }

    /// The network's shape, checked.
    fn plan<'a>(&'a self, choice: &'a Selection<'a>) -> Result<Plan<'a>, String> {
        let mut subnets: Vec<Ipv4Net> = Vec::new();
        for text in &self.subnets {
            let net = prefix(text).map_err(|fault| format!("--subnets: {fault}"))?;
            match net {
                ipnet::IpNet::V4(net) if net.prefix_len() <= 29 => subnets.push(net),
                ipnet::IpNet::V4(_) => {
                    return Err(format!("--subnets: `{text}` is not a subnet; write such as 10.224.0.0/16"));
                }
                ipnet::IpNet::V6(_) => return Err(format!("--subnets: `{text}`: these commands are for IPv4 subnets")),
            }
        }
        let own = Ipv4Net::new_assert(self.address, 28).trunc();
        let place = u32::from(self.address) - u32::from(own.network());
        if !self.address.is_private() || !(4..15).contains(&place) {
            return Err(format!(
                "--address: {} cannot be egret's: Azure keeps the first four and the last of a subnet; write such as 10.225.0.4",
                self.address
            ));
        }
        if let Some(subnet) = subnets.iter().find(|net| net.contains(&own) || own.contains(*net)) {
            return Err(format!(
                "--address: {} lies in the cluster's subnet {subnet}, whose traffic is routed to egret; give egret a subnet of its own",
                self.address
            ));
        }
        let mut hints = Vec::new();
        let in_services = |ip: &str| ip.parse().is_ok_and(|ip: Ipv4Addr| SERVICES.contains(&ip));
        let taken = self.cluster.dns_servers.iter().find(|ip| in_services(ip)).cloned();
        let taken = taken.or_else(|| {
            subnets.iter().find(|net| SERVICES.contains(*net) || net.contains(&SERVICES)).map(Ipv4Net::to_string)
        });
        if let Some(taken) = taken {
            hints.push(format!("{taken} lies in the services' range {SERVICES} that AKS takes by default: give az aks create --service-cidr and --dns-service-ip of a free range, and SERVICE_CIDR here."));
        }
        Ok(Plan { aks: self, choice, subnets, own, hints })
    }
}

/// Everything that goes into the two texts.
struct Plan<'a> {
    aks: &'a Aks,
    choice: &'a Selection<'a>,
    subnets: Vec<Ipv4Net>,
    /// egret's own subnet: inside the cluster's, its packets would be routed to itself.
    own: Ipv4Net,
    hints: Vec<String>,
}

impl Plan<'_> {
    fn configuration(&self) -> String {
        let aks = self.aks;
        let list = |words: &[String]| format!("{words:?}");
        let location = self.choice.location.as_deref().unwrap_or("any");
        let upstreams = if aks.cluster.dns_servers.is_empty() {
            &["168.63.129.16".to_owned()][..]
        } else {
            &aks.cluster.dns_servers
        };
        let subnets: Vec<String> = self.subnets.iter().map(Ipv4Net::to_string).collect();
        let mut bundle = String::new();
        let mut put = |key: &str, value: String, why: &str| {
            let _ = writeln!(bundle, "      {:<36} # {why}", format!("{key}: {value}"));
        };
        put("cloud", self.choice.cloud_name.to_owned(), "global, china or usgov");
        put("location", location.to_owned(), "fills the region into names and service tags");
        put("sources", list(&subnets), "no other client is let out");
        if aks.cluster.network_isolated {
            put("network_isolated", "true".to_owned(), "private, and nothing but the features below");
        } else if aks.cluster.private_cluster {
            put("private_cluster", "true".to_owned(), "the API server is inside the network");
        }
        if !aks.cluster.api_server.is_empty() {
            put("api_server", list(&aks.cluster.api_server), "yours, instead of every tenant's");
        } else if !aks.is_private() {
            put("api_server", "[]".to_owned(), "once it is known: opens yours instead of every tenant's");
        }
        if let Some(addresses) = aks.addresses() {
            put("addresses", list(&addresses), "where the names may lead: the API server's is inside");
        }
        if !aks.cluster.os.is_empty() {
            put("os", list(&aks.cluster.os), "the nodes'");
        }
        put("features", list(&aks.cluster.features), "`egret bundle list` prints what there is");
        put("registries", list(&aks.cluster.registries), "NAME of Azure's, or an FQDN");
        put("key_vaults", list(&aks.cluster.key_vaults), "yours, instead of every tenant's");
        put("dns_servers", list(&aks.cluster.dns_servers), "the network's own; none: Azure's, which needs no rule");
        format!(
            r#"# egret for an AKS cluster in {location}.
# `egret check --config FILE` holds it against the format, `egret explain --config FILE https://NAME` says what
# would happen to a connection, `egret bundle show aks` prints the rules with their purposes.
listeners:
  # What the route table brings.
  - {{ kind: transparent, bind: "0.0.0.0:3129", capture: tproxy }}
  # For AKS's HTTP proxy setting, where you use it.
  - {{ kind: forward, bind: "0.0.0.0:3128" }}
netfilter: {{ clients: {clients} }}             # no other client is forwarded
dns:
  upstreams: {upstreams}
policy:
  bundles:
    - bundle: aks
{bundle}  # What your own workloads need goes here; a refusal in the log carries the line to add as `fix`.
  application_rules: []
admin: {{ bind: "127.0.0.1:9901" }}           # metrics and health, for this machine only
health: {{ bind: "0.0.0.0:9902" }}            # /healthz and /readyz, for a load balancer's probe
"#,
            upstreams = list(upstreams),
            clients = list(&subnets),
        )
    }

    /// In the order that works: the way out first, then the cluster that needs it.
    fn commands(&self) -> String {
        let aks = self.aks;
        let location = self.choice.location.as_deref().unwrap_or("westeurope");
        let cloud = self.choice.cloud_name;
        let azure = match cloud {
            "china" => "AzureChinaCloud",
            "usgov" => "AzureUSGovernment",
            _ => "AzureCloud",
        };
        let subnets: Vec<String> = self.subnets.iter().map(Ipv4Net::to_string).collect();
        let all = subnets.join(" ");
        let mut out = format!(
            r#"# Fill in what is yours. docs/aks.md explains each step, docs/aks-http-proxy.md the proxy setting.
GROUP=aks-egress VNET=aks-vnet CLUSTER=mycluster LOCATION={location} EGRET_IP={address} EGRET_SUBNET={own}
SERVICE_CIDR={SERVICES}    # AKS's default
ADMIN_IP=    # the address you administer from
: "${{ADMIN_IP:?write it above}}"
az cloud set --name {azure} && az login
"#,
            address = aks.address,
            own = self.own,
        );
        for hint in &self.hints {
            let _ = writeln!(out, "# {hint}");
        }
        let _ = write!(
            out,
            r#"
# 1. The network: the cluster's subnets, and another one for egret.
az group create --name $GROUP --location $LOCATION
az network vnet create --resource-group $GROUP --name $VNET --address-prefixes {all} $EGRET_SUBNET
"#
        );
        for (n, subnet) in self.subnets.iter().enumerate() {
            let _ = writeln!(
                out,
                "az network vnet subnet create --resource-group $GROUP --vnet-name $VNET --name aks-{n} --address-prefixes {subnet}"
            );
        }
        let _ = write!(
            out,
            r#"az network nsg create --resource-group $GROUP --name egret-nsg
az network nsg rule create --resource-group $GROUP --nsg-name egret-nsg --name cluster --priority 100 --protocol '*' --source-address-prefixes {all} --destination-address-prefixes '*' --destination-port-ranges '*'
az network nsg rule create --resource-group $GROUP --nsg-name egret-nsg --name admin --priority 110 --protocol Tcp --source-address-prefixes $ADMIN_IP --destination-port-ranges 22
az network vnet subnet create --resource-group $GROUP --vnet-name $VNET --name egret --address-prefixes $EGRET_SUBNET --network-security-group egret-nsg

# 2. egret's machine, with its own way out. Its NIC may take packets for others; egret switches forwarding on in the kernel
#    once its rules are in place, and lets the cluster reach nothing of the machine but the listeners and the probe.
az network public-ip create --resource-group $GROUP --name egret-ip --sku Standard
az network nic create --resource-group $GROUP --name egret-nic --vnet-name $VNET --subnet egret --private-ip-address $EGRET_IP --public-ip-address egret-ip --ip-forwarding true
az vm create --resource-group $GROUP --name egret --nics egret-nic --image Ubuntu2404 --admin-username azureuser --generate-ssh-keys
EGRESS_IP=$(az network public-ip show --resource-group $GROUP --name egret-ip --query ipAddress --output tsv)
scp {file} azureuser@$EGRESS_IP:egret.yaml
scp egret deploy/egret-next-hop*.service azureuser@$EGRESS_IP:
ssh azureuser@$EGRESS_IP 'sudo apt-get install -y nftables && sudo install -D -m 755 egret /usr/local/bin/egret && sudo install -D -m 644 egret.yaml /etc/egret/egret.yaml && sudo install -m 644 egret-next-hop*.service /etc/systemd/system/ && sudo systemctl enable --now egret-next-hop-table egret-next-hop && egret health --ready --wait 30s --config /etc/egret/egret.yaml'

# 3. The route: all that leaves the cluster's subnets goes to egret. They have it before the cluster comes.
az network route-table create --resource-group $GROUP --name aks-routes
az network route-table route create --resource-group $GROUP --route-table-name aks-routes --name default --address-prefix 0.0.0.0/0 --next-hop-type VirtualAppliance --next-hop-ip-address $EGRET_IP
"#,
            file = aks.output.as_deref().unwrap_or_else(|| Path::new("egret.yaml")).display()
        );
        for n in 0..self.subnets.len() {
            let _ = writeln!(
                out,
                "az network vnet subnet update --resource-group $GROUP --vnet-name $VNET --name aks-{n} --route-table aks-routes"
            );
        }
        if aks.cluster.dns_servers.is_empty() {
            out.push_str("\n# 4. DNS: Azure's own resolver answers the nodes; nothing to do.\n");
        } else {
            let servers = aks.cluster.dns_servers.join(" ");
            let _ = writeln!(
                out,
                "\n# 4. DNS: the network asks its own servers; nodes take them when they start. They must be reached from this\n#    network (peering), and forward what they do not know, private zones among it, to 168.63.129.16.\naz network vnet update --resource-group $GROUP --name $VNET --dns-servers {servers}"
            );
        }
        out.push_str(&self.cluster(cloud, &subnets));
        out
    }

    fn cluster(&self, cloud: &str, subnets: &[String]) -> String {
        let aks = self.aks;
        let mut flags = String::from("--network-plugin azure --vnet-subnet-id $SUBNET_ID");
        if self.subnets.len() > 1 {
            flags.push_str(" --pod-subnet-id $POD_SUBNET_ID");
        }
        flags.push_str(match (aks.cluster.network_isolated, aks.cluster.private_cluster) {
            (true, _) => " --outbound-type none --bootstrap-artifact-source Cache --enable-private-cluster",
            (false, true) => " --outbound-type userDefinedRouting --enable-private-cluster",
            (false, false) => {
                " --outbound-type userDefinedRouting --api-server-authorized-ip-ranges $EGRESS_IP/32,$ADMIN_IP/32"
            }
        });
        let addons = [
            ("azure-policy", "azure-policy"),
            ("key-vault", "azure-keyvault-secrets-provider"),
            ("container-insights", "monitoring"),
        ];
        let addons = addons.iter().filter(|(feature, _)| self.choice.features.contains(feature));
        let addons: Vec<&str> = addons.map(|(_, addon)| *addon).collect();
        if !addons.is_empty() {
            let _ = write!(flags, " --enable-addons {}", addons.join(","));
        }
        if let Some(registry) = aks.cluster.registries.iter().find(|name| !name.contains('.')) {
            let _ = write!(flags, " --attach-acr {registry}");
        }
        let pods = if self.subnets.len() > 1 {
            "\nPOD_SUBNET_ID=$(az network vnet subnet show --resource-group $GROUP --vnet-name $VNET --name aks-1 --query id --output tsv)"
        } else {
            ""
        };
        let mut out = format!(
            r#"
# 5. The cluster, under an identity of its own that may use the subnet and the route table.
az identity create --resource-group $GROUP --name $CLUSTER
IDENTITY=$(az identity show --resource-group $GROUP --name $CLUSTER --query id --output tsv)
SUBNET_ID=$(az network vnet subnet show --resource-group $GROUP --vnet-name $VNET --name aks-0 --query id --output tsv){pods}
az aks create --resource-group $GROUP --name $CLUSTER --location $LOCATION --assign-identity $IDENTITY {flags} --generate-ssh-keys
# Not needed, and possible: nodes and pods that ask egret as their HTTP proxy too (docs/aks-http-proxy.md).
# egret bundle show aks --cloud {cloud} --location $LOCATION --format aks-http-proxy --proxy http://$EGRET_IP:3128 --no-proxy {no_proxy},$SERVICE_CIDR > aks-http-proxy.json
# az aks update --resource-group $GROUP --name $CLUSTER --http-proxy-config aks-http-proxy.json
"#,
            no_proxy = subnets.join(","),
        );
        if aks.is_private() {
            out.push_str("# The API server is reached inside the network, and egret has no part in it.\n");
        } else {
            out.push_str(
                r#"
# 6. Now the API server has a name: write it as api_server into the configuration, and send egret a SIGHUP
#    (sudo systemctl reload egret-next-hop). Until then every tenant's API server in the region is open by name.
az aks show --resource-group $GROUP --name $CLUSTER --query fqdn --output tsv
"#,
            );
        }
        out
    }
}

/// One question on stderr, one line of stdin.
fn question(text: &str) -> Result<String, CommandError> {
    complain(&format!("{text}: "));
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line)?;
    if read == 0 {
        complain("\n");
        let message = "no answer; say it with options: --location REGION --subnets CIDR,… (and --cloud, --api-server, --features, --registries)";
        return Err(CommandError::Usage(message.to_owned()));
    }
    Ok(line.trim().to_owned())
}
