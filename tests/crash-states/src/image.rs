//! The states in which a crash may leave a disk, one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::disk::{Disk, FileNumber, Names};

/// A segment which is prepared is never read, so its bytes matter only as a whole.
const NEVER_READ: &str = "next.wal.tmp";

/// Up to how many changes of the directory all subsets are looked at.
const CHANGES_EXHAUSTED: usize = 6;

/// How many states of one moment are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Thoroughness {
    /// Up to how many, all of them.
    pub exhaustive: usize,
    /// Else the regular ones, and this many random ones.
    pub random: usize,
}

/// One state: which files there are, and which of the possible values each part has.
#[derive(Debug)]
pub struct State<'a> {
    disk: &'a Disk,
    /// The changes of the directory that reached the disk; none if the directory is missing.
    kept: Option<&'a BTreeSet<usize>>,
    names: &'a Names,
    choices: BTreeMap<Part, usize>,
}

/// Something that may be old or new by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Length(FileNumber),
    Sector(FileNumber, usize),
    /// All sectors of a file that is never read: old, new, or every other one.
    Whole(FileNumber),
}

/// Shows all states that a crash now may leave, or a fair choice of them where there are too many.
pub fn each_state(
    disk: &Disk,
    thoroughness: Thoroughness,
    random: &mut Random,
    visit: &mut dyn FnMut(&State<'_>),
) {
    if disk.may_be_missing() {
        visit(&State {
            disk,
            kept: None,
            names: &Names::new(),
            choices: BTreeMap::new(),
        });
    }
    let mut seen = BTreeSet::new();
    for kept in subsets(disk.changes.len()) {
        let names = disk.names(&kept);
        if !seen.insert(names.clone()) {
            continue;
        }
        let parts = parts(disk, &names);
        let counts: Vec<_> = parts.iter().map(|(_, count)| *count).collect();
        each_choice(&counts, thoroughness, random, &mut |choice| {
            let choices = parts.iter().map(|(part, _)| *part);
            visit(&State {
                disk,
                kept: Some(&kept),
                names: &names,
                choices: choices.zip(choice.iter().copied()).collect(),
            });
        });
    }
}

/// All subsets of so many changes; where they are many, all beginnings, and each alone missing or present.
fn subsets(changes: usize) -> Vec<BTreeSet<usize>> {
    if changes <= CHANGES_EXHAUSTED {
        let subset = |bits: usize| {
            (0..changes)
                .filter(|index| bits >> index & 1 == 1)
                .collect()
        };
        return (0..1 << changes).map(subset).collect();
    }
    let beginnings = (0..=changes).map(|end| (0..end).collect());
    let missing =
        (0..changes).map(|missing| (0..changes).filter(|index| *index != missing).collect());
    let single = (0..changes).map(|single| BTreeSet::from([single]));
    beginnings.chain(missing).chain(single).collect()
}

/// The parts that are uncertain, each with its number of values.
fn parts(disk: &Disk, names: &Names) -> Vec<(Part, usize)> {
    let mut parts = Vec::new();
    for (name, number) in names {
        let file = &disk.files[*number];
        parts.push((Part::Length(*number), file.length.possible().len()));
        let sectors = file.sectors.iter().map(|sector| sector.possible().len());
        if name == NEVER_READ {
            let uncertain = sectors.max().unwrap_or(1) > 1;
            parts.push((Part::Whole(*number), if uncertain { 3 } else { 1 }));
        } else {
            let part = |(index, count)| (Part::Sector(*number, index), count);
            parts.extend(sectors.enumerate().map(part));
        }
    }
    parts.retain(|(_, count)| *count > 1);
    parts
}

/// Shows vectors with a number below each count: all, or the regular ones and some random ones.
fn each_choice(
    counts: &[usize],
    thoroughness: Thoroughness,
    random: &mut Random,
    visit: &mut dyn FnMut(&[usize]),
) {
    let all = counts
        .iter()
        .try_fold(1_usize, |all, count| all.checked_mul(*count));
    if all.is_some_and(|all| all <= thoroughness.exhaustive) {
        every_choice(counts, visit);
        return;
    }
    for choice in regular_choices(counts) {
        visit(&choice);
    }
    for _ in 0..thoroughness.random {
        let choice: Vec<_> = counts.iter().map(|count| random.below(*count)).collect();
        visit(&choice);
    }
}

fn every_choice(counts: &[usize], visit: &mut dyn FnMut(&[usize])) {
    let mut choice = vec![0; counts.len()];
    loop {
        visit(&choice);
        let Some(index) = (0..counts.len()).find(|index| choice[*index] + 1 < counts[*index])
        else {
            return;
        };
        choice[..index].fill(0);
        choice[index] += 1;
    }
}

/// All old but a beginning, an end or a single part, all new but one, and every other one.
fn regular_choices(counts: &[usize]) -> BTreeSet<Vec<usize>> {
    let newest: Vec<_> = counts.iter().map(|count| count - 1).collect();
    let where_new = |is_new: &dyn Fn(usize) -> bool| -> Vec<usize> {
        let newest = newest.iter().enumerate();
        newest
            .map(|(index, newest)| if is_new(index) { *newest } else { 0 })
            .collect()
    };
    let mut choices = BTreeSet::new();
    for border in 0..=counts.len() {
        choices.insert(where_new(&|index| index < border));
        choices.insert(where_new(&|index| index >= border));
        choices.insert(where_new(&|index| index == border));
        choices.insert(where_new(&|index| index != border));
    }
    choices.insert(where_new(&|index| index.is_multiple_of(2)));
    choices.insert(where_new(&|index| !index.is_multiple_of(2)));
    choices
}

impl State<'_> {
    /// What tells states with other files from this one.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (name, bytes) in self.files() {
            name.hash(&mut hasher);
            bytes.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The files with their bytes.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let names = self.names.iter();
        names
            .map(|(name, number)| (name.clone(), self.bytes(*number)))
            .collect()
    }

    fn bytes(&self, number: FileNumber) -> Vec<u8> {
        let file = &self.disk.files[number];
        let chosen = |part, count: usize| self.choices.get(&part).copied().unwrap_or(count - 1);
        let lengths = file.length.possible();
        let length = lengths[chosen(Part::Length(number), lengths.len())];
        let whole = self.choices.get(&Part::Whole(number));
        let mut bytes = Vec::with_capacity(length.next_multiple_of(512));
        for (index, sector) in file.sectors.iter().enumerate() {
            let possible = sector.possible();
            let choice = match whole {
                Some(0) => 0,
                Some(2) if index % 2 == 1 => 0,
                Some(_) => possible.len() - 1,
                None => chosen(Part::Sector(number, index), possible.len()),
            };
            bytes.extend(*possible[choice]);
        }
        // Where the file grew over sectors of which none was written yet.
        bytes.resize(length, 0);
        bytes
    }

    /// What the crash took, in words.
    pub fn lost(&self) -> Vec<String> {
        let Some(kept) = self.kept else {
            return vec!["the directory".to_owned()];
        };
        let changes = self.disk.changes.iter().enumerate();
        let mut lost: Vec<_> = changes
            .filter(|(index, _)| !kept.contains(index))
            .map(|(_, change)| change.what.clone())
            .collect();
        for (part, choice) in &self.choices {
            lost.extend(self.lost_part(*part, *choice));
        }
        lost
    }

    fn lost_part(&self, part: Part, choice: usize) -> Option<String> {
        let (Part::Length(number) | Part::Sector(number, _) | Part::Whole(number)) = part;
        let names = &mut self.names.iter();
        let (name, _) = names.find(|(_, named)| **named == number)?;
        let file = &self.disk.files[number];
        let (what, count) = match part {
            Part::Length(_) => ("its length".to_owned(), file.length.possible().len()),
            Part::Sector(_, index) => (
                format!("sector {index}"),
                file.sectors[index].possible().len(),
            ),
            Part::Whole(_) => ("its sectors".to_owned(), 2),
        };
        (choice + 1 < count || matches!(part, Part::Whole(_)) && choice == 2)
            .then(|| format!("{name}: {what}, value {choice} of 0–{}", count - 1))
    }
}

/// Random numbers that are the same in every run (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }
}
