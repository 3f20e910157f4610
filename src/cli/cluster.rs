//! What a cluster has and uses, as options that several commands take.

use clap::Args;

use crate::bundle::{OneOrMany, Parameters};

#[derive(Debug, Default, PartialEq, Eq, Args)]
pub(super) struct Cluster {
    /// What the cluster uses; `egret bundle list` prints what there is
    #[arg(long, value_name = "F,…", value_delimiter = ',')]
    pub(super) features: Vec<String>,
    /// The nodes': ubuntu, azurelinux, windows
    #[arg(long, value_name = "OS,…", value_delimiter = ',')]
    pub(super) os: Vec<String>,
    /// The cluster's API server, once it is known: FQDN, address or CIDR
    #[arg(long, value_name = "X,…", value_delimiter = ',')]
    pub(super) api_server: Vec<String>,
    /// The network's own DNS servers
    #[arg(long, value_name = "IP,…", value_delimiter = ',')]
    pub(super) dns_servers: Vec<String>,
    /// Container registries of your own
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(super) registries: Vec<String>,
    /// Key vaults of your own
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(super) key_vaults: Vec<String>,
    /// The API server is inside the network
    #[arg(long)]
    pub(super) private_cluster: bool,
    /// A network isolated cluster: private, and nothing but the features named
    #[arg(long)]
    pub(super) network_isolated: bool,
}

impl Cluster {
    /// What is asked of a bundle for it, and nothing else said.
    pub(super) fn asked(&self, bundle: &str, location: &str) -> Parameters {
        Parameters {
            features: self.features.clone(),
            os: OneOrMany::Many(self.os.clone()),
            api_server: OneOrMany::Many(self.api_server.clone()),
            dns_servers: self.dns_servers.clone(),
            registries: self.registries.clone(),
            key_vaults: self.key_vaults.clone(),
            private_cluster: self.private_cluster.then_some(true),
            network_isolated: self.network_isolated.then_some(true),
            ..Parameters::of(bundle, location)
        }
    }
}
