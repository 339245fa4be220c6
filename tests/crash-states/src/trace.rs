//! What strace wrote down, read as events.
//!
//! A call takes its place where it *ended*; a sync covers what ended before it *began*. Where calls of two threads overlap, the order of their
//! ends is one in which they may have taken effect, and a crash before an end is covered by the choice of what is not synced.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::driver::Said;
use crate::event::{Event, Sync};

/// The calls that are recorded. Those of them that [`Reader`] doesn't know are an error where they touch a log.
pub(crate) const CALLS: &str = "open,openat,openat2,creat,write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,sync_file_range,sync,syncfs,\
    rename,renameat,renameat2,unlink,unlinkat,ftruncate,truncate,fallocate,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat,\
    copy_file_range,sendfile,io_uring_setup";

/// The lock's file holds a process id for messages; nothing of it is promised, so every state gets one with odd bytes.
const LOCK: &str = "lock";

/// Reads the calls that touched `<root>/<case>/log`, by case.
///
/// # Errors
/// Where a call that changes a log is not understood: better no proof than one with a hole.
pub(crate) fn read(text: &str, root: &Path) -> Result<BTreeMap<usize, Vec<Event>>> {
    let mut reader = Reader {
        root: root.to_owned(),
        begun: HashMap::new(),
        cases: BTreeMap::new(),
        said: String::new(),
    };
    for line in text.lines() {
        reader
            .line(line)
            .with_context(|| format!("strace wrote: {}", shortened(line)))?;
    }
    Ok(reader.cases)
}

fn shortened(line: &str) -> String {
    line.chars().take(400).collect()
}

/// A file that a call names.
#[derive(Clone, Debug)]
enum Place {
    /// The directory around a log's.
    Parent(usize),
    /// A log's directory.
    Directory(usize),
    /// A file of a log.
    File(usize, String),
    /// Anything else.
    Elsewhere,
}

struct Reader {
    root: PathBuf,
    /// The first half of a call that another thread interrupted, and how many events each case had then.
    begun: HashMap<String, (String, BTreeMap<usize, usize>)>,
    cases: BTreeMap<usize, Vec<Event>>,
    said: String,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<()> {
        let Some((process, call)) = line.split_once(' ') else {
            return Ok(());
        };
        let call = call.trim_start();
        if let Some(first) = call.strip_suffix(" <unfinished ...>") {
            let lengths = self.lengths();
            self.begun
                .insert(process.to_owned(), (first.to_owned(), lengths));
            return Ok(());
        }
        if let Some(resumed) = call.strip_prefix("<... ") {
            let (_, second) = resumed
                .split_once(" resumed>")
                .context("a call that goes on without its end")?;
            let (first, lengths) = self
                .begun
                .remove(process)
                .context("a call that goes on without its beginning")?;
            return self.call(&(first + second), &lengths);
        }
        let lengths = self.lengths();
        self.call(call, &lengths)
    }

    fn lengths(&self) -> BTreeMap<usize, usize> {
        let lengths = self.cases.iter();
        lengths
            .map(|(case, events)| (*case, events.len()))
            .collect()
    }

    fn call(&mut self, call: &str, lengths: &BTreeMap<usize, usize>) -> Result<()> {
        let (name, rest) = call.split_once('(').context("no call")?;
        let (arguments, result) = rest.rsplit_once(" = ").context("no result")?;
        let arguments = arguments.trim_end().strip_suffix(')').context("no end")?;
        let arguments: Vec<_> = arguments.split(", ").collect();
        let succeeded = !result.starts_with('-') && !result.starts_with('?');
        let call = Call {
            name,
            arguments,
            result,
            succeeded,
        };
        match name {
            "fsync" | "fdatasync" => self.sync(&call, lengths),
            _ if !succeeded => Ok(()),
            "write" if call.arguments[0].starts_with("1<") => self.hear(&call.bytes(1)?),
            "open" | "openat" => self.open(&call),
            "pwrite64" => self.write(&call),
            "rename" => self.rename(&call),
            "unlink" => match self.place(&call.path(0)?) {
                Place::File(case, name) => self.push(case, Event::Unlink { name }),
                place => self.unknown(&call, &place),
            },
            "mkdir" => match self.place(&call.path(0)?) {
                Place::Directory(case) => self.push(case, Event::MakeDirectory),
                place => self.unknown(&call, &place),
            },
            _ => self.other(&call),
        }
    }

    fn open(&mut self, call: &Call<'_>) -> Result<()> {
        let at = usize::from(call.name == "openat");
        let flags = call.arguments.get(at + 1).context("no flags")?;
        let place = self.place(&call.path(at)?);
        match place {
            Place::File(case, name) if flags.contains("O_CREAT") && name != LOCK => {
                if !flags.contains("O_EXCL") {
                    bail!("a file may have been created or not");
                }
                self.push(case, Event::Create { name })
            }
            Place::File(..) if flags.contains("O_TRUNC") => self.unknown(call, &place),
            _ => Ok(()),
        }
    }

    fn write(&mut self, call: &Call<'_>) -> Result<()> {
        let Place::File(case, name) = self.descriptor(call)? else {
            return Ok(());
        };
        let mut bytes = call.bytes(1)?;
        bytes.truncate(call.result.trim().parse()?);
        let offset = call.arguments.get(3).context("no offset")?.parse()?;
        let write = Event::Write {
            name,
            offset,
            bytes,
        };
        self.push(case, write)
    }

    fn sync(&mut self, call: &Call<'_>, lengths: &BTreeMap<usize, usize>) -> Result<()> {
        let place = self.descriptor(call)?;
        let (Place::Parent(case) | Place::Directory(case) | Place::File(case, _)) = place else {
            return Ok(());
        };
        let now = self.cases.get(&case).map_or(0, Vec::len);
        let sync = Sync {
            succeeded: call.succeeded,
            overlapped: now - lengths.get(&case).copied().unwrap_or(0),
        };
        let event = match place {
            Place::Parent(_) => Event::SyncParent(sync),
            Place::File(_, name) => Event::SyncFile { name, sync },
            Place::Directory(_) | Place::Elsewhere => Event::SyncDirectory(sync),
        };
        self.push(case, event)
    }

    fn rename(&mut self, call: &Call<'_>) -> Result<()> {
        match [self.place(&call.path(0)?), self.place(&call.path(1)?)] {
            [Place::File(case, from), Place::File(other, to)] if case == other => {
                self.push(case, Event::Rename { from, to })
            }
            [Place::Elsewhere, place] | [place, _] => self.unknown(call, &place),
        }
    }

    /// Words may come in pieces, but end with their line.
    fn hear(&mut self, bytes: &[u8]) -> Result<()> {
        self.said.push_str(std::str::from_utf8(bytes)?);
        while let Some((line, rest)) = self.said.split_once('\n') {
            let said: Said = serde_json::from_str(line)?;
            self.said = rest.to_owned();
            self.push(said.case, Event::Say(said.word))?;
        }
        Ok(())
    }

    /// Any other call is harmless as long as it doesn't name a log's file other than the lock's.
    fn other(&self, call: &Call<'_>) -> Result<()> {
        for argument in &call.arguments {
            if let Some(path) = named_path(argument) {
                self.unknown(call, &self.place(&path))?;
            }
        }
        Ok(())
    }

    #[allow(clippy::unused_self, reason = "as its siblings")]
    fn unknown(&self, call: &Call<'_>, place: &Place) -> Result<()> {
        match place {
            Place::Elsewhere => Ok(()),
            Place::File(_, name) if name == LOCK => Ok(()),
            _ => bail!("{} is not modelled here", call.name),
        }
    }

    fn push(&mut self, case: usize, event: Event) -> Result<()> {
        let events = self.cases.entry(case).or_default();
        if !matches!(&event, Event::Write { name, .. } | Event::SyncFile { name, .. } if name == LOCK)
        {
            events.push(event);
        }
        Ok(())
    }

    /// The file of a call's first argument. One that has no name any more can't come back.
    fn descriptor(&self, call: &Call<'_>) -> Result<Place> {
        let argument = call.arguments[0];
        if argument.ends_with("(deleted)") {
            return Ok(Place::Elsewhere);
        }
        let path = named_path(argument).context("a descriptor without a path")?;
        Ok(self.place(&path))
    }

    fn place(&self, path: &str) -> Place {
        let Ok(inner) = Path::new(path).strip_prefix(&self.root) else {
            return Place::Elsewhere;
        };
        let parts: Vec<_> = inner.iter().filter_map(|part| part.to_str()).collect();
        let Some(case) = parts.first().and_then(|case| case.parse().ok()) else {
            return Place::Elsewhere;
        };
        match parts[1..] {
            [] => Place::Parent(case),
            ["log"] => Place::Directory(case),
            ["log", name] => Place::File(case, name.to_owned()),
            _ => Place::Elsewhere,
        }
    }
}

struct Call<'a> {
    name: &'a str,
    arguments: Vec<&'a str>,
    result: &'a str,
    succeeded: bool,
}

impl Call<'_> {
    fn bytes(&self, index: usize) -> Result<Vec<u8>> {
        let argument = self.arguments.get(index).context("too few arguments")?;
        let inner = argument.strip_prefix('"').context("no string")?;
        let inner = inner.strip_suffix('"').context("strace cut a string off")?;
        unescape(inner)
    }

    fn path(&self, index: usize) -> Result<String> {
        Ok(String::from_utf8(self.bytes(index)?)?)
    }
}

/// The path in `3<path>` or `"path"`.
fn named_path(argument: &str) -> Option<String> {
    let inner = match argument.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?,
        None => argument.split_once('<')?.1.strip_suffix('>')?,
    };
    String::from_utf8(unescape(inner).ok()?).ok()
}

/// The bytes of `\x6c\x6f\x67`.
fn unescape(text: &str) -> Result<Vec<u8>> {
    let digits = text.as_bytes().chunks(4).map(|chunk| match chunk {
        [b'\\', b'x', high, low] => Some(hexadecimal(*high)? << 4 | hexadecimal(*low)?),
        _ => None,
    });
    digits.collect::<Option<_>>().context("not hexadecimal")
}

fn hexadecimal(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}
