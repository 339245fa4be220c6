//! One run: databases, processes, orders, kills, and a look at what is left.

use std::{
    collections::HashSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use example_harness::{
    chaos::{self, Chaos},
    processes::System,
    progress,
    traffic::Traffic,
};
use tokio::{select, try_join};

use crate::{
    Arguments,
    check::{self, Evidence},
    orders::Clients,
    plan::Plan,
    report::{Findings, Report},
    shop::Shop,
    tally::Tally,
};

/// A kill may come so far into an order.
const MOMENT: Duration = Duration::from_millis(50);

/// Places the orders, with all files in `directory`.
pub(crate) async fn run(arguments: &Arguments, directory: &Path) -> Result<Report> {
    let plan = Plan {
        seed: arguments.seed.unwrap_or_else(rand::random),
        orders: arguments.orders,
        customers: arguments.customers,
    };
    eprintln!("seed {}, files in {}", plan.seed, directory.display());
    let shop = Shop::open(directory, &arguments.databases, &plan).await?;
    let before = shop.holdings().await?;
    let clients = usize::from(arguments.clients);
    let mut system = System::start(directory).await?;
    let cast = shop.staff(&mut system, clients).await?;

    let traffic = Arc::new(Traffic::default());
    let chaos = Chaos {
        victims: cast.victims(&arguments.kills),
        seed: plan.seed,
        traffic: &traffic,
        work: arguments.orders,
        moment: MOMENT,
    };
    let work = Clients::new(system.address(), plan.clone(), Arc::clone(&traffic))?;
    let under_way = async || Ok(under_way(&work));
    let started = Instant::now();
    let timed_work = async {
        work.run(clients).await?;
        Ok(started.elapsed())
    };
    let (elapsed, kills) = select! {
        done = async { try_join!(timed_work, chaos.run(&mut system, &under_way)) } => done?,
        never = progress::show(&traffic, arguments.orders, "orders", standing) => never,
    };

    let held = chaos::settle(&async || shop.held().await).await?;
    system.stop().await?;
    let problems = check::problems(&Evidence {
        plan: &plan,
        told: &work.told(),
        events: shop.events().await?,
        before,
        after: shop.holdings().await?,
    });
    Ok(Report::new(Findings {
        databases: shop.databases(),
        tally: traffic.tally(),
        kills,
        held,
        problems,
        elapsed,
    }))
}

/// The orders whose end is not known yet.
fn under_way(clients: &Clients) -> HashSet<String> {
    let told = clients.told().into_iter();
    told.filter(|(_, told)| told.is_none())
        .map(|(number, _)| number.to_string())
        .collect()
}

fn standing(tally: &Tally) -> String {
    format!(
        "{} completed, {} undone",
        tally.completed,
        tally.compensated()
    )
}
