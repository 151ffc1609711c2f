//! The one door to the kernel's nftables: the `nft` program.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use nftables::schema::Nftables;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::Error;
use crate::children::Children;

/// What can be asked of nftables. Every write is one transaction: all of it or nothing.
#[expect(async_fn_in_trait, reason = "the daemon runs on one thread, so no future needs to be Send")]
pub trait Nft {
    /// Carries out a ruleset text.
    async fn load(&mut self, text: &str) -> Result<(), Error>;
    /// Carries out JSON commands.
    async fn transact(&mut self, commands: &Nftables<'_>) -> Result<(), Error>;
    /// Lists a table (`ip podway`) as JSON; `None` if there is none.
    async fn list_table(&mut self, table: &str) -> Result<Option<String>, Error>;
    /// The same without elements.
    async fn list_rules(&mut self, table: &str) -> Result<Option<String>, Error>;
    /// Lists every table there is with its handle as JSON, without what is in it.
    async fn list_tables(&mut self) -> Result<String, Error>;
    /// Lists every chain there is as JSON, without rules.
    async fn list_chains(&mut self) -> Result<String, Error>;
    /// Lists a chain (`ip filter FORWARD`) with its rules as JSON; `None` if there is none.
    async fn list_chain(&mut self, chain: &str) -> Result<Option<String>, Error>;
    /// What `iptables-legacy -S FORWARD`, or ip6tables-legacy, prints, empty if it cannot be run; `None` if the kernel has
    /// no such table.
    async fn list_legacy_forward(&mut self, ipv6: bool) -> Result<Option<String>, Error>;
}

/// Runs the real `nft`, which must be on PATH, in the caller's network namespace. Wants CAP_NET_ADMIN.
///
/// Clones know of each other's runs, so that [`crate::Watch`] can tell their writes from others'.
#[derive(Debug, Clone)]
pub struct NftProcess {
    program: PathBuf,
    children: Children,
}

impl Default for NftProcess {
    fn default() -> Self {
        Self { program: "nft".into(), children: Children::default() }
    }
}

impl Nft for NftProcess {
    async fn load(&mut self, text: &str) -> Result<(), Error> {
        self.write(&["-f", "-"], text.as_bytes()).await
    }

    async fn transact(&mut self, commands: &Nftables<'_>) -> Result<(), Error> {
        let input = serde_json::to_vec(commands)
            .map_err(|error| Error::Unreadable { call: "-j -f -".into(), message: error.to_string() })?;
        self.write(&["-j", "-f", "-"], &input).await
    }

    async fn list_table(&mut self, table: &str) -> Result<Option<String>, Error> {
        self.list(&["-j", "list", "table"], table).await
    }

    async fn list_rules(&mut self, table: &str) -> Result<Option<String>, Error> {
        self.list(&["-j", "-t", "list", "table"], table).await
    }

    async fn list_tables(&mut self) -> Result<String, Error> {
        self.list_all(&["-j", "-a", "list", "tables"]).await
    }

    async fn list_chains(&mut self) -> Result<String, Error> {
        self.list_all(&["-j", "-t", "list", "chains"]).await
    }

    async fn list_chain(&mut self, chain: &str) -> Result<Option<String>, Error> {
        self.list(&["-j", "-t", "-a", "list", "chain"], chain).await
    }

    async fn list_legacy_forward(&mut self, ipv6: bool) -> Result<Option<String>, Error> {
        let (names, program) = match ipv6 {
            false => ("/proc/thread-self/net/ip_tables_names", "iptables-legacy"),
            true => ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy"),
        };
        // Asking for the table makes it, hence the look whether it is there.
        let names = std::fs::read_to_string(names).unwrap_or_default();
        if !names.lines().any(|table| table == "filter") {
            return Ok(None);
        }
        let output =
            Command::new(program).args(["-w", "5", "-S", "FORWARD"]).stdin(Stdio::null()).output().await;
        let listing = output.ok().filter(|it| it.status.success());
        Ok(Some(listing.map(|it| String::from_utf8_lossy(&it.stdout).into_owned()).unwrap_or_default()))
    }
}

impl NftProcess {
    /// Its runs, shared with its clones.
    pub(crate) fn children(&self) -> Children {
        self.children.clone()
    }

    async fn list_all(&self, words: &[&str]) -> Result<String, Error> {
        let child = self.start(words)?;
        child.finish(b"").await?.map_err(|it| it.into_error(&words.join(" ")))
    }

    async fn list(&self, words: &[&str], what: &str) -> Result<Option<String>, Error> {
        let words: Vec<&str> = words.iter().copied().chain(what.split(' ')).collect();
        match self.start(&words)?.finish(b"").await? {
            Ok(listing) => Ok(Some(listing)),
            Err(refusal) if refusal.0.contains("No such file or directory") => Ok(None),
            Err(refusal) => Err(refusal.into_error(&words.join(" "))),
        }
    }

    /// The kernel tells of a run that changes something under the run's process id.
    async fn write(&self, arguments: &[&str], input: &[u8]) -> Result<(), Error> {
        let run = self.start(arguments)?;
        let id = run.child.id();
        id.iter().for_each(|id| self.children.started(*id));
        let written = run.finish(input).await?;
        written.map(drop).map_err(|refusal| {
            id.iter().for_each(|id| self.children.failed(*id));
            refusal.into_error(&arguments.join(" "))
        })
    }

    fn start(&self, arguments: &[&str]) -> Result<Run, Error> {
        let call = arguments.join(" ");
        let child = Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match child {
            Ok(child) => Ok(Run { call, child }),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(Error::Missing),
            Err(cause) => Err(Error::Io { call, cause }),
        }
    }
}

/// An nft that runs.
struct Run {
    call: String,
    child: Child,
}

impl Run {
    /// What it printed; `Err` within `Ok`: it refused.
    async fn finish(mut self, input: &[u8]) -> Result<Result<String, Refusal>, Error> {
        let stdin = self.child.stdin.take();
        let feed = async {
            match stdin {
                // A refusal at the first line closes the pipe early; the exit status then says more than the write.
                Some(mut stdin) => match stdin.write_all(input).await {
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
                    _ => Ok(()),
                },
                None => Ok(()),
            }
        };
        let (fed, output) = tokio::join!(feed, self.child.wait_with_output());
        let failed = |cause| Error::Io { call: self.call, cause };
        let output = match (fed, output) {
            (Ok(()), Ok(output)) => output,
            (Err(cause), _) | (_, Err(cause)) => return Err(failed(cause)),
        };
        match output.status.success() {
            true => Ok(Ok(String::from_utf8_lossy(&output.stdout).into_owned())),
            false => Ok(Err(Refusal(one_line(&String::from_utf8_lossy(&output.stderr))))),
        }
    }
}

/// nft's complaint fit for a log line: without the lines that quote and underline its input.
fn one_line(complaint: &str) -> String {
    let lines = complaint.lines().filter(|line| line.contains("Error:") || line.contains("not permitted"));
    let lines: Vec<&str> = lines.take(3).map(str::trim).collect();
    match lines.is_empty() {
        true => complaint.split_whitespace().collect::<Vec<_>>().join(" "),
        false => lines.join("; "),
    }
}

struct Refusal(String);

impl Refusal {
    fn into_error(self, call: &str) -> Error {
        Error::Refused { call: call.to_owned(), message: self.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_one_line() {
        let complaint = "/dev/stdin:1:1-5: Error: No such file\nflush table ip x\n^^^^^\n";
        assert_eq!(one_line(complaint), "/dev/stdin:1:1-5: Error: No such file");
        assert_eq!(one_line("out of\n memory\n"), "out of memory");
    }

    #[tokio::test]
    async fn a_missing_nft_is_named() {
        let mut nft = NftProcess { program: "/nonexistent/nft".into(), ..NftProcess::default() };
        let error = nft.load("list ruleset").await.unwrap_err();
        assert!(matches!(error, Error::Missing));
        assert!(error.to_string().contains("install the package nftables"), "{error}");
    }
}
