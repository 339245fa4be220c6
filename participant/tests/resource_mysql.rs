//! The resource manager for MySQL and MariaDB, on MySQL, where it is installed.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod fixture;
mod xa;

use unanimity_tests::mariadb::Flavour;

const FLAVOUR: Flavour = Flavour::Mysql;
