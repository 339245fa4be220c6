//! What the databases say at rest: the only witness that the checks believe.

use anyhow::Result;
use futures_util::future::try_join_all;

use crate::bank::{Account, Bank, Entry};

/// The tables of all banks, in the banks' order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    pub(crate) ledgers: Vec<Vec<Entry>>,
    pub(crate) accounts: Vec<Vec<Account>>,
    /// Branches that are prepared: bank and id.
    pub(crate) prepared: Vec<(usize, String)>,
}

impl Tables {
    /// Reads them.
    ///
    /// # Errors
    /// A database's.
    pub(crate) async fn read(banks: &[Bank]) -> Result<Self> {
        Ok(Self {
            ledgers: try_join_all(banks.iter().map(Bank::ledger)).await?,
            accounts: try_join_all(banks.iter().map(Bank::accounts)).await?,
            prepared: prepared(banks).await?,
        })
    }
}

/// Branches that are prepared: bank and id.
///
/// # Errors
/// A database's.
pub(crate) async fn prepared(banks: &[Bank]) -> Result<Vec<(usize, String)>> {
    let found = try_join_all(banks.iter().map(Bank::prepared)).await?;
    let by_bank = found.into_iter().enumerate();
    Ok(by_bank
        .flat_map(|(bank, ids)| ids.into_iter().map(move |id| (bank, id)))
        .collect())
}
