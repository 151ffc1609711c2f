//! An nftables that lives in memory, to inject faults and to look at every state on the way.

use std::collections::{BTreeMap, BTreeSet};

use nftables::expr::Expression;
use nftables::schema::{Element, NfCmd, NfListObject, NfObject, Nftables};
use nftables::types::NfFamily;

use crate::Error;
use crate::process::Nft;

/// Holds tables, chains and elements, and refuses what the kernel would: adding an element that stands with another
/// value, deleting one that does not, going to a chain that is not there. Rules are not kept.
#[derive(Debug, Clone, Default)]
pub struct FakeNft {
    tables: BTreeMap<String, Table>,
    /// Refuse this many of the coming writes.
    pub failures: u32,
    /// Fail this many of the coming listings.
    pub blindness: u32,
    /// Every state that was visible between two transactions, oldest first, as table, set, key and value.
    pub history: Vec<Vec<[String; 4]>>,
}

#[derive(Debug, Clone, Default)]
struct Table {
    chains: BTreeSet<String>,
    sets: BTreeMap<String, BTreeMap<String, (Expression<'static>, Option<String>)>>,
}

impl Nft for FakeNft {
    async fn load(&mut self, text: &str) -> Result<(), Error> {
        self.fail_if_told("-f -")?;
        let mut table = String::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["table" | "add", "table", family, name] | ["table", family, name, "{"] => {
                    table = format!("{family} {name}");
                    self.tables.entry(table.clone()).or_default();
                }
                ["delete", "table", family, name] => drop(self.tables.remove(&format!("{family} {name}"))),
                ["chain", name, "{"] => drop(self.table(&table)?.chains.insert(name.to_owned())),
                ["add", "chain", family, of, name] => {
                    self.table(&format!("{family} {of}"))?.chains.insert(name.to_owned());
                }
                ["delete", "chain", family, of, name] => {
                    self.table(&format!("{family} {of}"))?.chains.remove(name);
                }
                ["add", "element", family, of, set, "{", ref element @ .., "}"] => {
                    let element = parse(&element.join(" "));
                    let (key, value) = split(&element);
                    let held = (text_of(key), (element.clone(), value.map(text_of)));
                    self.table(&format!("{family} {of}"))?
                        .sets
                        .entry(set.to_owned())
                        .or_default()
                        .extend([held]);
                }
                _ => {}
            }
        }
        self.record();
        Ok(())
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
        if self.blindness > 0 {
            self.blindness -= 1;
            return Err(refused("told not to see"));
        }
        let Some(table) = self.tables.get(table) else { return Ok(None) };
        let chains = table.chains.iter().map(|name| serde_json::json!({"chain": {"name": name}}));
        let sets = table.sets.iter().map(|(name, elements)| {
            let elements: Vec<_> = elements.values().map(|(element, _)| element).collect();
            serde_json::json!({"map": {"name": name, "elem": elements}})
        });
        Ok(Some(serde_json::json!({"nftables": chains.chain(sets).collect::<Vec<_>>()}).to_string()))
    }
}

impl FakeNft {
    fn add(&mut self, element: &Element<'_>) -> Result<(), Error> {
        let table = self.table(&table_of(element))?;
        for item in element.elem.iter() {
            let (key, value) = split(item);
            if let Some(Expression::Verdict(nftables::expr::Verdict::Goto(to))) = value
                && !table.chains.contains(to.target.as_ref())
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

/// Reads an element's text: `10.0.0.1 . tcp . 80 : goto pick-1`, `10.0.0.0/8`, `7`.
fn parse(text: &str) -> Expression<'static> {
    let one = |word: &str| match (word.parse::<u32>(), word.split_once('/'), word.strip_prefix("goto ")) {
        (Ok(number), ..) => serde_json::json!(number),
        (_, Some((addr, len)), _) => {
            serde_json::json!({"prefix": {"addr": addr, "len": len.parse::<u32>().unwrap_or_default()}})
        }
        (.., Some(target)) => serde_json::json!({"goto": {"target": target}}),
        _ => serde_json::json!(word),
    };
    let side = |text: &str| match text.split(" . ").map(one).collect::<Vec<_>>() {
        parts if parts.len() > 1 => serde_json::json!({"concat": parts}),
        mut parts => parts.pop().unwrap_or_default(),
    };
    let json = match text.split_once(" : ") {
        Some((key, value)) => serde_json::json!([side(key), side(value)]),
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
