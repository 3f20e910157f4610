//! `egret init aks`: from a few answers to a checked configuration, and the `az` commands around it.

use std::fmt::Write as _;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ipnet::{IpNet, Ipv4Net};

use super::{CommandError, complain};
use crate::bundle;
use crate::config::Settings;

#[derive(Debug, Subcommand)]
pub(super) enum InitCommand {
    /// For an AKS cluster; asks for what no option says
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
    /// The subnets of nodes and pods
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    subnets: Vec<String>,
    /// The API server's FQDN, once it is known
    #[arg(long, value_name = "FQDN,…", value_delimiter = ',')]
    api_server: Vec<String>,
    /// What the cluster uses; `egret bundle list` prints what there is
    #[arg(long, value_name = "F,…", value_delimiter = ',')]
    features: Vec<String>,
    /// Container registries of your own
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    registries: Vec<String>,
    /// Key vaults of your own
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    key_vaults: Vec<String>,
    /// The network's own DNS servers
    #[arg(long, value_name = "IP,…", value_delimiter = ',')]
    dns_servers: Vec<String>,
    /// The API server is inside the network
    #[arg(long)]
    private_cluster: bool,
    /// egret's own address in the network
    #[arg(long, value_name = "IP", default_value = "10.225.0.4")]
    address: std::net::Ipv4Addr,
    /// Write the configuration here, and only the commands to stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl InitCommand {
    /// What is to be printed.
    pub(super) fn answer(self) -> Result<String, CommandError> {
        let Self::Aks(mut aks) = self;
        aks.ask()?;
        let own = aks.own_subnet()?;
        let text = aks.configuration();
        let settings = Settings::parse(&text, "egret.yaml", Path::new("."))?;
        for warning in &settings.warnings {
            complain(&format!("warning: {}: {}\n", warning.path, warning.message));
        }
        let commands = aks.commands(own);
        let Some(path) = &aks.output else {
            let commented: String =
                commands.lines().map(|line| format!("# {line}").trim_end().to_owned() + "\n").collect();
            return Ok(format!("{text}\n# ---- the commands around it ----\n{commented}"));
        };
        let mut file = std::fs::File::create_new(path).map_err(|e| {
            CommandError::Usage(format!("cannot write {}: {e}; give --output a place that is free", path.display()))
        })?;
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
        if self.cloud.is_none() {
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
        if self.api_server.is_empty() {
            self.api_server = list(question("The API server's FQDN (empty: not known yet)")?);
        }
        if self.features.is_empty() {
            self.features = list(question("Features, as `egret bundle list` prints them (empty: none)")?);
        }
        if self.registries.is_empty() {
            self.registries = list(question("Your own container registries (empty: none)")?);
        }
        Ok(())
    }

    /// egret's own subnet: inside the cluster's, its packets would be routed to itself.
    fn own_subnet(&self) -> Result<Ipv4Net, CommandError> {
        let own = Ipv4Net::new_assert(self.address, 28).trunc();
        let overlaps = |net: &IpNet| net.contains(&IpNet::V4(own)) || IpNet::V4(own).contains(net);
        match self.subnets.iter().find(|text| text.parse().is_ok_and(|net| overlaps(&net))) {
            None => Ok(own),
            Some(subnet) => Err(CommandError::Usage(format!(
                "--address: {} lies in the cluster's subnet {subnet}, whose traffic is routed to egret; give egret a subnet of its own",
                self.address
            ))),
        }
    }

    fn cloud(&self) -> &str {
        self.cloud.as_deref().unwrap_or("global")
    }

    fn location(&self) -> &str {
        self.location.as_deref().unwrap_or_default()
    }

    fn configuration(&self) -> String {
        let list = |words: &[String]| format!("{words:?}");
        let upstreams =
            if self.dns_servers.is_empty() { vec!["168.63.129.16".to_owned()] } else { self.dns_servers.clone() };
        let mut bundle = String::new();
        let mut put = |key: &str, value: String, why: &str| {
            let _ = writeln!(bundle, "      {:<36} # {why}", format!("{key}: {value}"));
        };
        put("cloud", format!("{:?}", self.cloud()), "global, china or usgov");
        put("location", format!("{:?}", self.location()), "fills the region into names and service tags");
        put("sources", list(&self.subnets), "nobody else is let out");
        if self.api_server.is_empty() {
            put("api_server", "[]".to_owned(), "once it is known: opens yours instead of every tenant's");
        } else {
            put("api_server", list(&self.api_server), "yours, instead of every tenant's");
        }
        put("features", list(&self.features), "`egret bundle list` prints what there is");
        put("registries", list(&self.registries), "NAME of Azure's, or an FQDN");
        put("key_vaults", list(&self.key_vaults), "yours, instead of every tenant's");
        put("dns_servers", list(&self.dns_servers), "the network's own; none: Azure's, which needs no rule");
        if self.private_cluster {
            put("private_cluster", "true".to_owned(), "the API server is inside the network");
        }
        format!(
            r#"# egret for an AKS cluster in {location}.
# `egret check --config FILE` holds it against the format, `egret explain --config FILE https://NAME` says what
# would happen to a connection, `egret bundle show aks` prints the rules with their purposes.
listeners:
  # Where AKS's HTTP proxy setting points to.
  - {{ kind: forward, bind: "0.0.0.0:3128" }}
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
            location = self.location(),
            upstreams = list(&upstreams),
        )
    }

    /// In the order that works: the way out first, then the cluster that needs it.
    fn commands(&self, own: Ipv4Net) -> String {
        let azure = match bundle::named("aks").ok().and_then(|b| b.cloud(self.cloud()).ok()).map(|(name, _)| name) {
            Some("china") => "AzureChinaCloud",
            Some("usgov") => "AzureUSGovernment",
            _ => "AzureCloud",
        };
        let subnet = self.subnets.first().map_or("10.224.0.0/16", String::as_str);
        let subnets = self.subnets.join(",");
        let dns = if self.dns_servers.is_empty() {
            "# 4. DNS: Azure's own resolver answers the nodes; nothing to do.".to_owned()
        } else {
            format!(
                "# 4. DNS: the network asks its own servers; nodes take them when they start.\naz network vnet update --resource-group $GROUP --name $VNET --dns-servers {}",
                self.dns_servers.join(" ")
            )
        };
        let private = if self.private_cluster {
            "--enable-private-cluster"
        } else {
            "--api-server-authorized-ip-ranges $EGRESS_IP/32"
        };
        format!(
            r#"# Fill in what is yours. docs/aks.md explains each step, docs/aks-http-proxy.md the proxy setting.
GROUP=aks-egress VNET=aks-vnet CLUSTER=mycluster LOCATION={location} EGRET_IP={address} EGRET_SUBNET={own}
az cloud set --name {azure}

# 1. The network: a subnet for the cluster, another one for egret.
az group create --name $GROUP --location $LOCATION
az network vnet create --resource-group $GROUP --name $VNET --address-prefixes {subnet} $EGRET_SUBNET --subnet-name aks --subnet-prefixes {subnet}
az network vnet subnet create --resource-group $GROUP --vnet-name $VNET --name egret --address-prefixes $EGRET_SUBNET

# 2. egret's machine: its own way out, and leave to forward for others.
az network public-ip create --resource-group $GROUP --name egret-ip --sku Standard
az network nic create --resource-group $GROUP --name egret-nic --vnet-name $VNET --subnet egret --private-ip-address $EGRET_IP --public-ip-address egret-ip --ip-forwarding true
az vm create --resource-group $GROUP --name egret --nics egret-nic --image Ubuntu2404 --generate-ssh-keys
EGRESS_IP=$(az network public-ip show --resource-group $GROUP --name egret-ip --query ipAddress --output tsv)
# Now install egret there with this configuration, start it, and see that `egret health` answers.

# 3. The route: all that leaves the cluster's subnet goes to egret. The subnet has it before the cluster comes.
az network route-table create --resource-group $GROUP --name aks-routes
az network route-table route create --resource-group $GROUP --route-table-name aks-routes --name default --address-prefix 0.0.0.0/0 --next-hop-type VirtualAppliance --next-hop-ip-address $EGRET_IP
az network vnet subnet update --resource-group $GROUP --vnet-name $VNET --name aks --route-table aks-routes

{dns}

# 5. The cluster. Nodes and pods get the proxy, and the API server takes connections from egret's address.
egret bundle show aks --cloud {cloud} --location $LOCATION --format aks-http-proxy --proxy http://$EGRET_IP:3128 --no-proxy {subnets} > aks-http-proxy.json
SUBNET_ID=$(az network vnet subnet show --resource-group $GROUP --vnet-name $VNET --name aks --query id --output tsv)
az aks create --resource-group $GROUP --name $CLUSTER --location $LOCATION --network-plugin azure --vnet-subnet-id $SUBNET_ID --outbound-type userDefinedRouting {private} --http-proxy-config aks-http-proxy.json --generate-ssh-keys

# 6. Now the API server has a name: write it as api_server into the configuration, and restart egret.
az aks show --resource-group $GROUP --name $CLUSTER --query '[fqdn, privateFqdn]' --output tsv
"#,
            location = self.location(),
            address = self.address,
            cloud = self.cloud(),
        )
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
