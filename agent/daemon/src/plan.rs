//! `podway plan`: a cluster's address ranges from a VPC's (contract N23). What is decided is decided in
//! `podway_overlay::plan_vpc`; here it is asked and shown.

mod files;
mod table;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use podway_overlay::{Family, PerFamily, VpcNote, VpcPlan, VpcRequest, plan_vpc, vpc_notes};

/// What a cluster needs and where it may have it from.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// The range to plan in, such as 10.0.0.0/8: the VPC's, or a part of it. Once more for IPv6.
    #[arg(long, value_name = "CIDR", required = true, value_delimiter = ',')]
    vpc: Vec<IpNet>,
    /// How many nodes the cluster is to have.
    #[arg(long, value_name = "N")]
    nodes: u64,
    /// How many pods a node is to run; 110 is kubelet's own limit.
    #[arg(long, value_name = "M", default_value_t = 110)]
    pods_per_node: u64,
    /// How many Services the cluster is to have.
    #[arg(long, value_name = "K", default_value_t = 10_000)]
    services: u64,
    /// Leave room for this many times the nodes and Services, as far as there is any.
    #[arg(long, value_name = "FACTOR", default_value_t = 4)]
    growth: u64,
    /// What must not be used: the nodes' own subnets, peered networks, VPNs. May be repeated.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    reserve: Vec<IpNet>,
    /// What to print.
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t)]
    output: Form,
}

/// What is printed.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Form {
    /// Everything, for people.
    #[default]
    Table,
    /// flannel's net-conf.json.
    NetConf,
    /// The fields of podway's configuration.
    Config,
    /// The fields of kubeadm's ClusterConfiguration.
    Kubeadm,
    /// Everything, for programs.
    Json,
}

/// A request with what came of it.
struct Answer {
    request: VpcRequest,
    plans: PerFamily<Option<VpcPlan>>,
    notes: Vec<VpcNote>,
}

impl Plan {
    /// Plans and prints. Where the output is for a program, what an operator should know goes to standard error.
    ///
    /// # Errors
    /// When it does not fit, with what would.
    pub(crate) fn execute(&self) -> Result<()> {
        let answer = Answer::to(self.request()?)?;
        let text = match self.output {
            Form::Table => table::render(&answer),
            Form::NetConf => files::net_conf(&answer)?,
            Form::Config => files::config(&answer),
            Form::Kubeadm => files::kubeadm(&answer),
            Form::Json => files::json(&answer)?,
        };
        print!("{text}");
        if !matches!(self.output, Form::Table | Form::Json) {
            answer.notes.iter().for_each(|note| eprintln!("podway: note: {note}"));
        }
        Ok(())
    }

    fn request(&self) -> Result<VpcRequest> {
        Ok(VpcRequest {
            vpc: PerFamily { v4: self.vpc(Family::V4)?, v6: self.vpc(Family::V6)? },
            nodes: self.nodes,
            pods_per_node: self.pods_per_node,
            services: self.services,
            growth: self.growth,
            reserved: self.reserve.clone(),
        })
    }

    fn vpc(&self, family: Family) -> Result<Option<IpNet>> {
        let ranges: Vec<&IpNet> = self.vpc.iter().filter(|vpc| Family::of(vpc) == family).collect();
        match ranges[..] {
            [] => Ok(None),
            [vpc] => Ok(Some(*vpc)),
            [first, second, ..] => bail!(
                "--vpc: {first} and {second} are both {family}; pods have one range a family: name the one to plan in"
            ),
        }
    }
}

impl Answer {
    fn to(request: VpcRequest) -> Result<Self> {
        let plans = plan_vpc(&request)?;
        let notes = vpc_notes(&request, &plans);
        Ok(Self { request, plans, notes })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn n23_one_range_a_family_is_planned_in() {
        let asked =
            parse("--vpc 10.0.0.0/8,fd00:10::/48 --nodes 9 --reserve 10.0.0.0/16 --reserve fd00:10::/56");
        let request = asked.request().unwrap();
        assert_eq!(request.vpc.v4, Some("10.0.0.0/8".parse().unwrap()));
        assert_eq!(request.vpc.v6, Some("fd00:10::/48".parse().unwrap()));
        assert_eq!(
            (request.nodes, request.pods_per_node, request.services, request.growth),
            (9, 110, 10_000, 4)
        );
        assert_eq!(request.reserved.len(), 2);
        let error =
            parse("--vpc 10.0.0.0/8 --vpc 172.16.0.0/12 --nodes 9").request().unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/8 and 172.16.0.0/12 are both IPv4"), "{error}");
    }

    #[test]
    fn n23_what_does_not_fit_is_an_error() {
        let error = parse("--vpc 10.0.0.0/24 --nodes 1000").execute().unwrap_err().to_string();
        assert!(error.starts_with("10.0.0.0/24 does not hold 1000 nodes"), "{error}");
    }

    /// The answer to a command line.
    pub(super) fn answer(flags: &str) -> Answer {
        Answer::to(parse(flags).request().unwrap()).unwrap()
    }

    fn parse(flags: &str) -> Plan {
        #[derive(Parser)]
        struct Alone {
            #[command(flatten)]
            plan: Plan,
        }
        Alone::parse_from(std::iter::once("plan").chain(flags.split_whitespace())).plan
    }
}
