//! Every input that was kept, through its target, without the search.

use unanimity_fuzz::{TARGETS, corpus};

#[test]
fn no_input_that_was_kept_breaks_a_promise() {
    for target in TARGETS {
        let inputs = corpus::inputs(target).expect("the corpus can be read");
        assert!(!inputs.is_empty(), "{} has no inputs", target.name);
        for (name, input) in inputs {
            eprintln!("{}: {name}", target.name);
            (target.check)(&input);
        }
    }
}

#[test]
fn a_target_has_one_name() {
    let mut names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TARGETS.len());
}
