//! A plan for people.

use std::fmt::{self, Display, Write};

use ipnet::IpNet;
use podway_overlay::{Family, Range, VpcPlan};

use super::Answer;

/// How many other cuts of the pod network are shown.
const CUTS: usize = 4;

pub(super) fn render(answer: &Answer) -> String {
    let mut text = String::new();
    for (family, plan) in answer.plans.iter() {
        // Writing to a String does not fail.
        let _ = render_family(&mut text, answer, family, plan);
    }
    for (at, note) in answer.notes.iter().enumerate() {
        let _ = writeln!(text, "{}  - {note}", if at == 0 { "Notes\n" } else { "" });
    }
    text
}

fn render_family(text: &mut String, answer: &Answer, family: Family, plan: &VpcPlan) -> fmt::Result {
    let room = plan.room();
    let range = &plan.range;
    writeln!(text, "{family}, in {}\n", plan.vpc)?;
    let pods = format!(
        "a /{} for each node: {} nodes, {} pods on each",
        range.subnet_len(),
        Number(room.nodes),
        Number(room.pods_per_node)
    );
    let services = format!(
        "{} Services; the API server's is {}, DNS {} by custom",
        Number(room.services),
        plan.api_server(),
        plan.dns()
    );
    let nets = [range.network().to_string(), plan.services.to_string()];
    let width = width(nets.iter().map(String::as_str), 18);
    for (name, net, what) in [("Pod network", &nets[0], pods), ("Service range", &nets[1], services)] {
        writeln!(text, "  {name:<18}{net:<width$}{what}")?;
    }
    writeln!(text)?;
    render_growth(text, answer, plan)?;
    writeln!(text)?;
    let parts = map(plan);
    let width = self::width(parts.iter().map(|(part, _)| part.as_str()), 18);
    for (part, what) in &parts {
        writeln!(text, "  {part:<width$}{what}")?;
    }
    writeln!(text)
}

fn render_growth(text: &mut String, answer: &Answer, plan: &VpcPlan) -> fmt::Result {
    let (asked, room) = (&answer.request, plan.room());
    let wanted = format!(
        "{} nodes, {} pods on each, {} Services",
        Number(asked.nodes.into()),
        Number(asked.pods_per_node.into()),
        Number(asked.services.into())
    );
    line(text, "Asked for", &wanted)?;
    let times = format!(
        "nodes {}, pods on each {}, Services {}",
        Times(room.nodes, asked.nodes),
        Times(room.pods_per_node, asked.pods_per_node),
        Times(room.services, asked.services)
    );
    line(text, "Room to grow", &times)?;
    let cuts = plan.other_cuts(asked.nodes, asked.pods_per_node);
    for (at, cut) in cuts.iter().take(CUTS).enumerate() {
        line(
            text,
            if at == 0 { "Or cut otherwise" } else { "" },
            &said(cut, &format!("a /{}", cut.subnet_len())),
        )?;
    }
    match plan.widened() {
        Some(wider) => line(text, "Wider later", &said(&wider, &format!("to {}", wider.network()))),
        None => line(text, "Wider later", &"not in place: what is around it is taken"),
    }
}

fn said(range: &Range, what: &str) -> String {
    let bits = u32::from(range.network().max_prefix_len() - range.subnet_len());
    let addresses = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
    format!("{what}: {} nodes, {} pods on each", Number(range.count()), Number(addresses - 3))
}

/// The width of a column that holds these texts.
fn width<'a>(texts: impl Iterator<Item = &'a str>, least: usize) -> usize {
    texts.map(str::len).chain([least]).max().unwrap_or(least) + 2
}

fn line(text: &mut String, name: &str, what: &dyn Display) -> fmt::Result {
    writeln!(text, "  {name:<18}{what}")
}

/// The whole VPC from its first address to its last. Free blocks beside each other are one part.
fn map(plan: &VpcPlan) -> Vec<(String, String)> {
    let free = plan.free();
    let mut parts: Vec<(IpNet, &str)> = free.iter().map(|net| (*net, "free")).collect();
    parts.extend(plan.reserved.iter().map(|net| (*net, "reserved")));
    parts.push((plan.range.network(), "pods"));
    parts.push((plan.services, "Services"));
    parts.sort();
    parts
        .chunk_by(|(_, one), (_, next)| *one == "free" && *next == "free")
        .filter_map(|run| Some((run, run.first()?, run.last()?)))
        .map(|(run, (first, what), (last, _))| {
            let largest = run.iter().map(|(net, _)| net).min_by_key(|net| net.prefix_len()).unwrap_or(first);
            match run.len() {
                1 => (first.to_string(), (*what).to_owned()),
                _ => (
                    format!("{} - {}", first.network(), last.broadcast()),
                    format!("free, the largest part is {largest}"),
                ),
            }
        })
        .collect()
}

/// A count, in a form that can be read.
struct Number(u128);

impl Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 1 << 32 {
            // 2^n less a few.
            return write!(f, "2^{}", self.0.saturating_add(4).ilog2());
        }
        let digits = self.0.to_string();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

/// How many times what was asked there is room for.
struct Times(u128, u64);

impl Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0.saturating_mul(10) / u128::from(self.1.max(1));
        match tenths {
            10_000.. => f.write_str("over x1000"),
            _ => write!(f, "x{}.{}", tenths / 10, tenths % 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::answer;

    #[test]
    fn n23_an_operator_sees_ranges_growth_and_the_whole_vpc() {
        let answer = answer(
            "--vpc 10.0.0.0/8 --nodes 1000 --pods-per-node 110 --reserve 10.0.0.0/16,10.1.0.0/16,10.64.0.0/10",
        );
        assert_eq!(
            render(&answer),
            "\
IPv4, in 10.0.0.0/8

  Pod network       10.8.0.0/13         a /25 for each node: 4,095 nodes, 125 pods on each
  Service range     10.3.0.0/16         65,534 Services; the API server's is 10.3.0.1, DNS 10.3.0.10 by custom

  Asked for         1,000 nodes, 110 pods on each, 10,000 Services
  Room to grow      nodes x4.0, pods on each x1.1, Services x6.5
  Or cut otherwise  a /24: 2,047 nodes, 253 pods on each
                    a /23: 1,023 nodes, 509 pods on each
  Wider later       not in place: what is around it is taken

  10.0.0.0/16                reserved
  10.1.0.0/16                reserved
  10.2.0.0/16                free
  10.3.0.0/16                Services
  10.4.0.0/14                free
  10.8.0.0/13                pods
  10.16.0.0 - 10.63.255.255  free, the largest part is 10.32.0.0/11
  10.64.0.0/10               reserved
  10.128.0.0/9               free

"
        );
    }

    #[test]
    fn numbers_can_be_read() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (1_048_574, "1,048,574"), ((1 << 64) - 3, "2^64")]
        {
            assert_eq!(Number(number).to_string(), text);
        }
        assert_eq!(Times(4095, 1000).to_string(), "x4.0");
        assert_eq!(Times(1 << 64, 1).to_string(), "over x1000");
    }
}
