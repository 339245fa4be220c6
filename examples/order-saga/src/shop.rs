//! The shop: its databases, and the processes around them.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use example_harness::{
    address,
    processes::{ProcessId, System},
};

use crate::{
    check::Holdings,
    database::{Database, Dialect, Event},
    offers::{self, ORDERS_LOG, SHIPPING_LOG},
    payment::{self, PAYMENT_LOG},
    plan::Plan,
    plugs::Cast,
    stock::{self, STOCK_LOG},
};

/// The databases whose place can be chosen.
pub(crate) const NAMES: [&str; 3] = ["orders", "stock", "shipping"];

/// All databases, as we look at them.
pub(crate) struct Shop {
    directory: PathBuf,
    orders: Database,
    stock: Database,
    shipping: Database,
    payment: Database,
}

impl Shop {
    /// Opens the databases that were named, and a SQLite file in `directory` for each other one, and makes their tables anew.
    pub(crate) async fn open(
        directory: &Path,
        named: &[(String, String)],
        plan: &Plan,
    ) -> Result<Self> {
        let file = |name: &str| {
            format!(
                "sqlite:{}",
                directory.join(name).with_extension("db").display()
            )
        };
        let open = async |name: &str| {
            let url = named.iter().find(|(named, _)| named == name);
            let url = url.map_or_else(|| file(name), |(_, url)| url.clone());
            let database = Database::open(&url, 2).await;
            database.with_context(|| format!("the database of {name}"))
        };
        let shop = Self {
            orders: open("orders").await?,
            stock: open("stock").await?,
            shipping: open("shipping").await?,
            payment: open("payment").await?,
            directory: directory.to_owned(),
        };
        ensure!(
            shop.stock.dialect != Dialect::Postgres,
            "the stock is at home in MariaDB, MySQL or SQLite"
        );
        offers::create_orders(&shop.orders).await?;
        offers::create_shipping(&shop.shipping, plan).await?;
        stock::create(&shop.stock, plan).await?;
        payment::create(&shop.payment, plan).await?;
        Ok(shop)
    }

    /// Starts the agents and the services of a system, and waits until they do their work.
    pub(crate) async fn staff(&self, system: &mut System, clients: usize) -> Result<Cast> {
        let coordinator = system.address().to_owned();
        // Each client has one step under way at a time, and an agent looks around on connections of its own.
        let connections = u32::try_from(clients)?.saturating_add(4);
        let sql = ["participant", "sql"];
        let orders = offers::orders_agent(&self.orders, &coordinator, connections);
        let orders = system.add_configured("orders", &sql, &orders)?;
        let shipping = offers::shipping_agent(&self.shipping, &coordinator, connections);
        let shipping = system.add_configured("shipping", &sql, &shipping)?;

        let stock = stock::Config {
            coordinator: coordinator.clone(),
            database: self.stock.url().to_owned(),
            connections,
        };
        let stock = system.add_configured("stock", &["stock"], &toml::to_string(&stock)?)?;

        let listen = address::to_listen_on()?;
        let service = self.start_payment(system, &listen)?;
        system.wait_for_listener(service, &listen).await?;
        let journal = self.directory.join("payment.journal");
        let journal = journal.display().to_string();
        let payment = payment::agent(&listen, &journal, &coordinator, connections);
        let payment = system.add_configured("payment", &["participant", "http"], &payment)?;

        let participants = [orders, shipping, stock, payment];
        system.wait_for_participants(&participants).await?;
        Ok(Cast {
            agents: vec![orders, shipping, payment],
            services: vec![stock, service],
        })
    }

    fn start_payment(&self, system: &mut System, listen: &str) -> Result<ProcessId> {
        let file = self.directory.join("payment.db").display().to_string();
        let arguments = ["payment", "--listen", listen, "--database", &file];
        system.add("payment-service", &arguments)
    }

    /// What is reserved, or held on a card, and was neither used nor given back.
    pub(crate) async fn held(&self) -> Result<HashSet<String>> {
        let stock = stock::held(&self.stock).await?;
        let payment = payment::held(&self.payment).await?;
        Ok(stock.into_iter().chain(payment).collect())
    }

    /// What there is of items, money and slots.
    pub(crate) async fn holdings(&self) -> Result<Holdings> {
        Ok(Holdings {
            items: stock::left(&self.stock).await?,
            reserved: stock::reserved(&self.stock).await?,
            cents: payment::left(&self.payment).await?,
            slots: offers::room(&self.shipping).await?,
        })
    }

    /// The entries of all logs.
    pub(crate) async fn events(&self) -> Result<Vec<Event>> {
        let logs = [
            (&self.orders, ORDERS_LOG),
            (&self.stock, STOCK_LOG),
            (&self.shipping, SHIPPING_LOG),
            (&self.payment, PAYMENT_LOG),
        ];
        let mut events = Vec::new();
        for (database, log) in logs {
            events.extend(database.events(log).await?);
        }
        Ok(events)
    }

    /// The databases' names and URLs, fit to be shown.
    pub(crate) fn databases(&self) -> Vec<(&'static str, String)> {
        let databases = [
            ("orders", &self.orders),
            ("stock", &self.stock),
            ("shipping", &self.shipping),
            ("payment", &self.payment),
        ];
        let shown = |database: &Database| address::without_password(database.url());
        databases
            .into_iter()
            .map(|(name, database)| (name, shown(database)))
            .collect()
    }
}
