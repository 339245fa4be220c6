//! What a recorded run does with its log.

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Step {
    /// Open the log with segments of this many bytes.
    Open(u64),
    /// Append a batch of records with these sizes.
    Append(Vec<usize>),
    /// Say that this many of the newest records are needed, and no older ones.
    TrimTo(u64),
    /// Wait until the next segment has been prepared.
    Prepare,
    /// Close the log.
    Close,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Script {
    /// Its name, as `--run` takes it.
    pub name: &'static str,
    /// What it does.
    pub steps: Vec<Step>,
}

/// All runs.
pub fn all() -> Vec<Script> {
    vec![append(), rotate(), trim(), reopen(), resize()]
}

/// The run of this name.
pub fn named(name: &str) -> Option<Script> {
    all().into_iter().find(|script| script.name == name)
}

/// Batches from one record to several, within a sector and across up to eight; some end on a sector's border.
fn append() -> Script {
    let batches = [
        vec![10],
        vec![100, 0, 30],
        vec![700],
        vec![1, 2, 3, 4, 5],
        vec![1500, 20],
        vec![328],
        vec![480],
        vec![3000, 500],
        vec![40],
    ];
    let steps = [Step::Open(16 << 10), Step::Prepare];
    Script {
        name: "append",
        steps: steps.into_iter().chain(batches.map(Step::Append)).collect(),
    }
}

/// Segments that fill up, with batches which just fit and which just don't.
fn rotate() -> Script {
    let sizes = [300, 600, 380, 924, 200, 200, 900, 30, 924, 500, 500, 10];
    let steps = sizes.map(|size| Step::Append(vec![size]));
    Script {
        name: "rotate",
        steps: [Step::Open(1024)].into_iter().chain(steps).collect(),
    }
}

/// Old segments go, one and several at a time.
fn trim() -> Script {
    let mut steps = vec![Step::Open(1024)];
    let append = |size| Step::Append(vec![size]);
    for (appends, keep) in [(3, 2), (6, 4), (7, 1), (3, 3)] {
        steps.extend((0..appends).map(|index| append(300 + 150 * (index % 3))));
        steps.push(Step::TrimTo(keep));
        steps.push(append(60));
    }
    Script {
        name: "trim",
        steps,
    }
}

/// The log is closed and opened between batches, empty, full and in between.
fn reopen() -> Script {
    let mut steps = Vec::new();
    for sizes in [
        vec![],
        vec![5],
        vec![700, 200],
        vec![900, 900],
        vec![],
        vec![600],
    ] {
        steps.push(Step::Open(1024));
        steps.extend(sizes.into_iter().map(|size| Step::Append(vec![size])));
        steps.push(Step::Close);
    }
    Script {
        name: "reopen",
        steps,
    }
}

/// The size of segments changes, so that an empty last segment is replaced by one with the same name.
fn resize() -> Script {
    let mut steps = Vec::new();
    for (segment_bytes, sizes) in [
        (512, vec![]),
        (2048, vec![1500]),
        (512, vec![300, 300]),
        (4096, vec![3500, 20, 400]),
        (1024, vec![800, 5]),
    ] {
        steps.push(Step::Open(segment_bytes));
        steps.extend(sizes.into_iter().map(|size| Step::Append(vec![size])));
        steps.push(Step::Close);
    }
    Script {
        name: "resize",
        steps,
    }
}

/// What is done with the state that a crash left.
pub fn recovery() -> Vec<Step> {
    vec![Step::Open(1024), Step::Append(vec![200, 100])]
}

/// The bytes of a record, which no other record has. Every third attempt's have long runs of zeros, as sectors that were never written have.
pub fn record(lsn: u64, attempt: u64, size: usize) -> Vec<u8> {
    let mut state = lsn.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ attempt.rotate_left(32);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(size + 8);
    bytes.extend(next());
    while bytes.len() < size {
        let sparse = attempt % 3 == 2 && bytes.len() % 1400 > 16;
        bytes.extend(if sparse { [0; 8] } else { next() });
    }
    bytes.truncate(size);
    bytes
}
