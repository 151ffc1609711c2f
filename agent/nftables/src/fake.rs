//! An nftables that lives in memory, to inject faults and to look at every state on the way.

use std::collections::BTreeMap;

use nftables::expr::Expression;
use nftables::schema::{Element, NfCmd, NfListObject, NfObject, Nftables};
use nftables::types::NfFamily;
use serde_json::{Value, json};

use crate::Error;
use crate::process::Nft;

/// Holds tables, chains and elements, and refuses what the kernel would: adding an element that stands with another
/// value, deleting one that does not, going to a chain that is not there. Rules are kept as text, and listed as nft does
/// if they are of the simple kind that [`crate::Forwarding`] deals with.
#[derive(Debug, Clone, Default)]
pub struct FakeNft {
    tables: BTreeMap<String, Table>,
    /// The latest of the tables'.
    handles: u64,
    /// Refuse this many of the coming writes.
    pub failures: u32,
    /// Fail this many of the coming listings.
    pub blindness: u32,
    /// What `iptables-legacy -S FORWARD` prints, if there is such a table.
    pub legacy: Option<String>,
    /// Every state that was visible between two transactions, oldest first, as table, set, key and value.
    pub history: Vec<Vec<[String; 4]>>,
}

#[derive(Debug, Clone, Default)]
struct Table {
    chains: BTreeMap<String, Chain>,
    sets: BTreeMap<String, BTreeMap<String, (Expression<'static>, Option<String>)>>,
    /// Its own handle.
    handle: u64,
    /// The latest of its rules'.
    handles: u64,
}

#[derive(Debug, Clone, Default)]
struct Chain {
    /// `type filter hook forward priority 0; policy drop;`, empty if it hangs on none.
    hook: String,
    rules: Vec<(u64, String)>,
}

impl Nft for FakeNft {
    async fn load(&mut self, text: &str) -> Result<(), Error> {
        self.fail_if_told("-f -")?;
        let before = self.tables.clone();
        let mut within = (String::new(), String::new());
        let done = text.lines().try_for_each(|line| self.carry_out(line.trim(), &mut within));
        match done {
            Ok(()) => self.record(),
            Err(_) => self.tables = before,
        }
        done
    }

    async fn transact(&mut self, commands: &Nftables<'_>) -> Result<(), Error> {
        self.fail_if_told("-j -f -")?;
        let before = self.tables.clone();
        let done = commands.objects.iter().try_for_each(|object| match object {
            NfObject::CmdObject(NfCmd::Add(NfListObject::Element(it))) => self.add(it),
            NfObject::CmdObject(NfCmd::Delete(NfListObject::Element(it))) => self.delete(it),
            other => Err(refused(&format!("not understood: {other:?}"))),
        });
        match done {
            Ok(()) => self.record(),
            Err(_) => self.tables = before,
        }
        done
    }

    async fn list_table(&mut self, table: &str) -> Result<Option<String>, Error> {
        self.go_blind_if_told()?;
        let Some((name, table)) = self.tables.get_key_value(table) else { return Ok(None) };
        let chains = table.chains.iter().flat_map(|(of, chain)| chain.list(name, of));
        let sets = table.sets.iter().map(|(name, elements)| {
            let elements: Vec<_> = elements.values().map(|(element, _)| element).collect();
            json!({"map": {"name": name, "elem": elements}})
        });
        Ok(Some(json!({"nftables": chains.chain(sets).collect::<Vec<_>>()}).to_string()))
    }

    async fn list_rules(&mut self, table: &str) -> Result<Option<String>, Error> {
        self.list_table(table).await
    }

    async fn list_tables(&mut self) -> Result<String, Error> {
        self.go_blind_if_told()?;
        let tables = self.tables.iter().map(|(name, table)| {
            let (family, name) = name.split_once(' ').unwrap_or_default();
            json!({"table": {"family": family, "name": name, "handle": table.handle}})
        });
        Ok(json!({"nftables": tables.collect::<Vec<_>>()}).to_string())
    }

    async fn list_chains(&mut self) -> Result<String, Error> {
        self.go_blind_if_told()?;
        let tables = self.tables.iter();
        let chains = tables.flat_map(|(name, table)| {
            table.chains.iter().filter_map(move |(of, chain)| chain.list(name, of).into_iter().next())
        });
        Ok(json!({"nftables": chains.collect::<Vec<_>>()}).to_string())
    }

    async fn list_chain(&mut self, chain: &str) -> Result<Option<String>, Error> {
        self.go_blind_if_told()?;
        let Some((table, name)) = chain.rsplit_once(' ') else { return Ok(None) };
        let found = self.tables.get(table).and_then(|it| it.chains.get(name));
        Ok(found.map(|chain| json!({"nftables": chain.list(table, name)}).to_string()))
    }

    async fn list_legacy_forward(&mut self, ipv6: bool) -> Result<Option<String>, Error> {
        Ok(self.legacy.clone().filter(|_| !ipv6))
    }
}

impl Chain {
    fn list(&self, table: &str, name: &str) -> Vec<Value> {
        let (family, table) = table.split_once(' ').unwrap_or_default();
        let mut chain = json!({"family": family, "table": table, "name": name});
        let mut hook = self.hook.split([' ', ';']).filter(|word| !word.is_empty());
        while let Some(word) = hook.next() {
            if let ("type" | "hook" | "policy", Some(value)) = (word, hook.next()) {
                chain[word] = json!(value);
            }
        }
        let rule = |(handle, text): &(u64, String)| {
            let (text, comment) =
                text.split_once(" comment ").map_or((text.as_str(), None), |(text, it)| (text, Some(it)));
            let comment = comment.map(|it| it.trim_matches('"'));
            json!({"rule": {"chain": name, "handle": handle, "comment": comment, "expr": statements(text)}})
        };
        [json!({"chain": chain})].into_iter().chain(self.rules.iter().map(rule)).collect()
    }
}

impl FakeNft {
    /// One line of a ruleset text; `within` are the table and the chain whose block it may be in.
    fn carry_out(&mut self, line: &str, within: &mut (String, String)) -> Result<(), Error> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["table" | "add", "table", family, name] | ["table", family, name, "{"] => {
                within.0 = format!("{family} {name}");
                self.make_table(&within.0);
            }
            ["delete", "table", family, name] => drop(self.tables.remove(&format!("{family} {name}"))),
            ["chain", name, "{"] => {
                within.1 = name.to_owned();
                self.table(&within.0)?.chains.entry(name.to_owned()).or_default();
            }
            ["}"] => within.1.clear(),
            [] | ["#", ..] => {}
            ["type", ..] if !within.1.is_empty() => self.chain(&within.0, &within.1)?.hook = line.to_owned(),
            _ if !within.1.is_empty() => self.add_rule(&within.0, &within.1, usize::MAX, line)?,
            ["add", "chain", family, of, name, ref hook @ ..] => {
                let hook = hook.join(" ").trim_matches(['{', '}', ' ']).to_owned();
                let chains = &mut self.table(&format!("{family} {of}"))?.chains;
                let chain = chains.entry(name.to_owned()).or_default();
                chain.hook = if hook.is_empty() { std::mem::take(&mut chain.hook) } else { hook };
            }
            ["delete", "chain", family, of, name] => {
                self.table(&format!("{family} {of}"))?.chains.remove(name);
            }
            ["flush", "chain", family, of, name] => {
                self.chain(&format!("{family} {of}"), name)?.rules.clear();
            }
            ["insert", "rule", family, of, name, "handle", handle, ref rule @ ..] => {
                let of = format!("{family} {of}");
                let rules = &self.chain(&of, name)?.rules;
                let at = rules.iter().position(|(it, _)| it.to_string() == handle);
                let at = at.ok_or_else(|| refused(&format!("no rule {handle}")))?;
                self.add_rule(&of, name, at, &rule.join(" "))?;
            }
            [verb @ ("add" | "insert"), "rule", family, of, name, ref rule @ ..] => {
                let at = if verb == "add" { usize::MAX } else { 0 };
                self.add_rule(&format!("{family} {of}"), name, at, &rule.join(" "))?;
            }
            ["delete", "rule", family, of, name, "handle", handle] => {
                let rules = &mut self.chain(&format!("{family} {of}"), name)?.rules;
                let at = rules.iter().position(|(it, _)| it.to_string() == handle);
                rules.remove(at.ok_or_else(|| refused(&format!("no rule {handle}")))?);
            }
            [verb @ ("add" | "delete"), "element", family, of, set, "{", ref element @ .., "}"] => {
                let element = parse(&element.join(" "));
                let (key, value) = split(&element);
                let (key, held) = (text_of(key), (element.clone(), value.map(text_of)));
                let set = self.table(&format!("{family} {of}"))?.sets.entry(set.to_owned()).or_default();
                match verb {
                    "add" => drop(set.insert(key, held)),
                    _ => drop(set.remove(&key).ok_or_else(|| refused("No such file or directory"))?),
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn make_table(&mut self, name: &str) {
        let handle = self.handles + 1;
        let table =
            self.tables.entry(name.to_owned()).or_insert_with(|| Table { handle, ..Table::default() });
        self.handles = self.handles.max(table.handle);
    }

    fn add_rule(&mut self, table: &str, chain: &str, at: usize, rule: &str) -> Result<(), Error> {
        let table = self.table(table)?;
        table.handles += 1;
        let handle = table.handles;
        let rules =
            &mut table.chains.get_mut(chain).ok_or_else(|| refused(&format!("no chain {chain}")))?.rules;
        rules.insert(at.min(rules.len()), (handle, rule.to_owned()));
        Ok(())
    }

    fn chain(&mut self, table: &str, name: &str) -> Result<&mut Chain, Error> {
        let chains = &mut self.table(table)?.chains;
        chains.get_mut(name).ok_or_else(|| refused(&format!("no chain {name}")))
    }

    fn go_blind_if_told(&mut self) -> Result<(), Error> {
        if self.blindness > 0 {
            self.blindness -= 1;
            return Err(refused("told not to see"));
        }
        Ok(())
    }

    fn add(&mut self, element: &Element<'_>) -> Result<(), Error> {
        let table = self.table(&table_of(element))?;
        for item in element.elem.iter() {
            let (key, value) = split(item);
            if let Some(Expression::Verdict(nftables::expr::Verdict::Goto(to))) = value
                && !table.chains.contains_key(to.target.as_ref())
            {
                return Err(refused(&format!("no chain {}", to.target)));
            }
            let set = table.sets.entry(element.name.to_string()).or_default();
            let value = value.map(text_of);
            match set.get(&text_of(key)) {
                Some((_, held)) if *held != value => return Err(refused("File exists")),
                _ => set.insert(text_of(key), (owned(item)?, value)),
            };
        }
        Ok(())
    }

    fn delete(&mut self, element: &Element<'_>) -> Result<(), Error> {
        let set = self.table(&table_of(element))?.sets.entry(element.name.to_string()).or_default();
        for item in element.elem.iter() {
            set.remove(&text_of(item)).ok_or_else(|| refused("No such file or directory"))?;
        }
        Ok(())
    }

    fn table(&mut self, name: &str) -> Result<&mut Table, Error> {
        self.tables.get_mut(name).ok_or_else(|| refused(&format!("no table {name}")))
    }

    fn fail_if_told(&mut self, call: &str) -> Result<(), Error> {
        if self.failures == 0 {
            return Ok(());
        }
        self.failures -= 1;
        Err(Error::Refused { call: call.to_owned(), message: "told to fail".to_owned() })
    }

    fn record(&mut self) {
        let tables = self.tables.iter().flat_map(|(name, table)| {
            table.sets.iter().flat_map(move |(set, elements)| {
                elements.iter().map(move |(key, (_, value))| {
                    [name.clone(), set.clone(), key.clone(), value.clone().unwrap_or_default()]
                })
            })
        });
        self.history.push(tables.collect());
    }
}

fn split<'a, 'e>(item: &'e Expression<'a>) -> (&'e Expression<'a>, Option<&'e Expression<'a>>) {
    match item {
        Expression::List(pair) if pair.len() == 2 => (&pair[0], Some(&pair[1])),
        key => (key, None),
    }
}

/// A rule's statements as nft lists them, if it is of a kind that podway reads.
fn statements(rule: &str) -> Vec<Value> {
    let words: Vec<&str> = rule.split(' ').collect();
    let of = |word: &str| json!({word: null});
    match words[..] {
        [family @ ("ip" | "ip6"), field @ ("saddr" | "daddr"), network, "counter", verdict] => {
            let (addr, len) = network.split_once('/').unwrap_or((network, "32"));
            let right = json!({"prefix": {"addr": addr, "len": len.parse::<u8>().unwrap_or_default()}});
            let left = json!({"payload": {"protocol": family, "field": field}});
            vec![json!({"match": {"op": "==", "left": left, "right": right}}), of("counter"), of(verdict)]
        }
        ["counter", verdict] => vec![of("counter"), of(verdict)],
        [verdict @ ("drop" | "accept")] => vec![of(verdict)],
        _ => vec![json!(rule)],
    }
}

/// Reads an element's text: `10.0.0.1 . tcp . 80 : goto pick-1`, `10.0.0.0/8`, `7`.
fn parse(text: &str) -> Expression<'static> {
    let one = |word: &str| match (word.parse::<u32>(), word.split_once('/'), word.strip_prefix("goto ")) {
        (Ok(number), ..) => json!(number),
        (_, Some((addr, len)), _) => {
            json!({"prefix": {"addr": addr, "len": len.parse::<u32>().unwrap_or_default()}})
        }
        (.., Some(target)) => json!({"goto": {"target": target}}),
        _ => json!(word),
    };
    let side = |text: &str| match text.split(" . ").map(one).collect::<Vec<_>>() {
        parts if parts.len() > 1 => json!({"concat": parts}),
        mut parts => parts.pop().unwrap_or_default(),
    };
    let json = match text.split_once(" : ") {
        Some((key, value)) => json!([side(key), side(value)]),
        None => side(text),
    };
    serde_json::from_value(json).unwrap_or(Expression::Boolean(false))
}

fn table_of(element: &Element<'_>) -> String {
    let family = match element.family {
        NfFamily::IP => "ip",
        NfFamily::IP6 => "ip6",
        _ => "inet",
    };
    format!("{family} {}", element.table)
}

fn text_of(expression: &Expression<'_>) -> String {
    serde_json::to_string(expression).unwrap_or_default()
}

fn owned(expression: &Expression<'_>) -> Result<Expression<'static>, Error> {
    serde_json::from_str(&text_of(expression)).map_err(|error| refused(&error.to_string()))
}

fn refused(message: &str) -> Error {
    Error::Refused { call: "-j -f -".to_owned(), message: message.to_owned() }
}
