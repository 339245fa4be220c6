//! The example order-saga, as its users run it.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;
use unanimity_tests::{binaries, mariadb::Mariadb, postgres::Postgres};

const KEYS: [&str; 12] = [
    "aborted",
    "compensated",
    "completed",
    "databases",
    "held",
    "heuristic",
    "kills",
    "orders_per_second",
    "problems",
    "recovery_ms",
    "seconds",
    "unknown",
];

/// The longest until every order is over that was under way when a killed process was back. An order whose step was tried meanwhile pauses
/// before it is tried again, and another of the same customer may wait for it.
const RECOVERY_MS: u64 = 20_000;

/// Runs it, and gives its exit code and what it printed on each side.
fn order_saga(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(binaries::path("order-saga"));
    let output = command.args(arguments).output().expect("it can be run");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints text");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Runs it with `--json`, which must be all that is printed, and checks every promise.
fn good_run(arguments: &[&str], orders: u64) -> Value {
    let (code, printed, errors) = order_saga(&[arguments, &["--json"]].concat());
    assert_eq!(code, Some(0), "{arguments:?}\n{printed}\n{errors}");
    let report: Value = serde_json::from_str(&printed).expect("one JSON object and nothing else");
    let keys: BTreeSet<&str> = report
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(keys, KEYS.into());
    assert_eq!(report["problems"], Value::Array(vec![]), "{report}");
    for none in ["held", "heuristic", "unknown"] {
        assert_eq!(report[none], 0, "{none}: {report}");
    }
    let ended = count(&report["completed"]) + sum(&report["compensated"]) + sum(&report["aborted"]);
    assert!(ended >= orders, "{report}");
    report
}

fn count(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is a count"))
}

fn sum(reasons: &Value) -> u64 {
    reasons
        .as_object()
        .expect("counts by reason")
        .values()
        .map(count)
        .sum()
}

/// There were kills enough, and nothing took long afterwards.
fn check_kills(report: &Value) {
    let kills = count(&report["kills"]);
    assert!(kills >= 3, "{report}");
    let recoveries = report["recovery_ms"].as_array().expect("a list");
    assert_eq!(recoveries.len() as u64, kills, "{report}");
    let slow = recoveries.iter().filter(|time| count(time) > RECOVERY_MS);
    assert_eq!(slow.count(), 0, "{report}");
}

#[test]
fn without_arguments_it_places_orders_on_sqlite_and_prints_a_table() {
    let (code, table, errors) = order_saga(&["--orders", "300", "--seed", "1"]);
    assert_eq!(code, Some(0), "{table}\n{errors}");
    for words in [
        "sqlite:",
        "completed",
        "undone: card refused",
        "undone: no delivery slot",
        "undone: out of stock",
        "held at the end",
        "Every order is whole, or wholly undone",
    ] {
        assert!(table.contains(words), "no {words:?} in\n{table}");
    }
}

#[test]
fn orders_are_whole_or_wholly_undone_whatever_is_killed() {
    for (seed, clients) in [("1", "16"), ("2", "4")] {
        let options = ["--orders", "400", "--kill", "all"];
        let options = [&options[..], &["--clients", clients, "--seed", seed]].concat();
        let report = good_run(&options, 400);
        check_kills(&report);
        let undone = report["compensated"].as_object().expect("counts");
        assert!(undone.contains_key("card refused"), "{report}");
    }
}

#[test]
fn three_kills_hit_orders_on_their_way_however_few_there_are() {
    for (kill, orders) in [
        ("coordinator", "5"),
        ("agents", "5"),
        ("services", "5"),
        ("all", "1"),
    ] {
        let options = ["--orders", orders, "--kill", kill, "--seed", "4"];
        check_kills(&good_run(&options, orders.parse().expect("a number")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_whole_or_wholly_undone_across_postgresql_mariadb_and_http() {
    let postgres = Postgres::shared().new_database().await;
    let [stock, shipping] = [(); 2].map(|()| Mariadb::shared().new_database());
    let (stock, shipping) = (stock.await, shipping.await);
    for (seed, shipping) in [("1", &postgres), ("2", &shipping)] {
        let databases = [
            format!("orders={postgres}"),
            format!("stock={stock}"),
            format!("shipping={shipping}"),
        ];
        let databases: Vec<&str> = databases
            .iter()
            .flat_map(|database| ["--database", database])
            .collect();
        let options = ["--orders", "400", "--clients", "16", "--kill", "all"];
        let report = good_run(&[&databases[..], &options, &["--seed", seed]].concat(), 400);
        check_kills(&report);
        assert!(
            !report.to_string().contains("secret"),
            "a password is shown: {report}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_refuses_databases_that_it_cant_use() {
    let postgres = Postgres::shared().new_database().await;
    let cases = [
        (format!("stock={postgres}"), "at home in"),
        (format!("payment={postgres}"), "NAME=URL"),
        ("orders=oracle:x".into(), "begins with postgres:"),
    ];
    for (database, words) in cases {
        let (code, printed, errors) = order_saga(&["--database", &database, "--json"]);
        assert_eq!((code, printed.as_str()), (Some(2), ""), "{errors}");
        assert!(errors.contains(words), "no {words:?} in {errors}");
    }
}
