//! The example bank-transfer, as its users run it.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;
use unanimity_tests::{binaries, mariadb::Mariadb, postgres::Postgres, system::Scratch};

const KEYS: [&str; 11] = [
    "aborted",
    "banks",
    "committed",
    "conserved",
    "in_doubt",
    "kills",
    "orphan_entries",
    "recovery_ms",
    "seconds",
    "transfers_per_second",
    "unknown",
];

/// Runs it, and gives its exit code and what it printed on each side.
fn bank_transfer(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(binaries::path("bank-transfer"));
    let output = command.args(arguments).output().expect("it can be run");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints text");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Runs it with `--json`, which must be all that is printed, and checks every promise.
fn good_run(arguments: &[&str], transfers: u64) -> Value {
    let (code, printed, errors) = bank_transfer(&[arguments, &["--json"]].concat());
    assert_eq!(code, Some(0), "{arguments:?}\n{printed}\n{errors}");
    let report: Value = serde_json::from_str(&printed).expect("one JSON object and nothing else");
    let keys: BTreeSet<&str> = report
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(keys, KEYS.into());
    assert_eq!(report["conserved"], true, "{report}");
    for none in ["in_doubt", "orphan_entries", "unknown"] {
        assert_eq!(report[none], 0, "{none}: {report}");
    }
    let number = |key: &str| {
        report[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key} is a number"))
    };
    assert!(number("committed") > 0, "{report}");
    assert!(
        number("committed") + number("aborted") >= transfers,
        "{report}"
    );
    report
}

async fn three_databases(scratch: &Scratch) -> [String; 3] {
    let sqlite = format!("sqlite:{}", scratch.path("bank.db").display());
    [
        Postgres::shared().new_database().await,
        Mariadb::shared().new_database().await,
        sqlite,
    ]
}

#[test]
fn without_arguments_it_moves_money_between_two_sqlite_banks_and_prints_a_table() {
    let (code, table, errors) = bank_transfer(&[]);
    assert_eq!(code, Some(0), "{table}\n{errors}");
    for words in [
        "bank1",
        "bank2",
        "total before",
        "total after",
        "committed",
        "in doubt at the end",
        "Money is conserved",
    ] {
        assert!(table.contains(words), "no {words:?} in\n{table}");
    }
}

#[test]
fn a_single_bank_works_too() {
    let scratch = Scratch::new();
    let bank = format!("sqlite:{}", scratch.path("only.db").display());
    let report = good_run(
        &[
            "--bank",
            &bank,
            "--transfers",
            "100",
            "--kill",
            "all",
            "--seed",
            "1",
        ],
        100,
    );
    assert_eq!(report["banks"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn money_is_conserved_across_three_databases_whatever_is_killed() {
    let scratch = Scratch::new();
    let urls = three_databases(&scratch).await;
    let banks: Vec<&str> = urls.iter().flat_map(|url| ["--bank", url]).collect();
    for (seed, clients) in [("1", "16"), ("2", "4"), ("3", "16")] {
        let options = [
            "--transfers",
            "1500",
            "--kill",
            "all",
            "--clients",
            clients,
            "--seed",
            seed,
        ];
        let report = good_run(&[&banks[..], &options].concat(), 1_500);
        assert!(report["kills"].as_u64() >= Some(3), "{report}");
        let recoveries = report["recovery_ms"].as_array().expect("a list");
        assert_eq!(
            Some(recoveries.len() as u64),
            report["kills"].as_u64(),
            "{report}"
        );
        let slow = recoveries
            .iter()
            .filter(|time| time.as_u64() > Some(2_000))
            .count();
        assert_eq!(
            slow, 0,
            "every branch in doubt is settled within 2 s: {report}"
        );
        assert!(
            !report.to_string().contains("secret"),
            "a password is shown: {report}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_kills_hit_transfers_however_few_there_are() {
    let scratch = Scratch::new();
    let [postgres, _, sqlite] = three_databases(&scratch).await;
    for (kill, transfers) in [("coordinator", "5"), ("participant", "5"), ("all", "1")] {
        let arguments = [
            "--bank",
            &postgres,
            "--bank",
            &sqlite,
            "--transfers",
            transfers,
            "--kill",
            kill,
            "--seed",
            "4",
        ];
        let report = good_run(&arguments, transfers.parse().expect("a number"));
        assert!(report["kills"].as_u64() >= Some(3), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_refuses_a_database_whose_tables_are_not_its_own() {
    let url = Postgres::shared().new_database().await;
    unanimity_tests::postgres::execute(&url, "CREATE TABLE account (id int, secret_plans text)")
        .await;
    let (code, printed, errors) = bank_transfer(&["--bank", &url, "--json"]);
    assert_eq!((code, printed.as_str()), (Some(2), ""), "{errors}");
    assert!(errors.contains("secret_plans"), "{errors}");
}
