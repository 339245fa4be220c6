//! Tables for the terminal.

use comfy_table::{CellAlignment, Table, presets::NOTHING};

/// A table without lines.
#[must_use]
pub fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table
}

/// Numbers stand on the right.
pub fn right_align(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}
