"""A report on finished runs: one page that shows curves, tables and what became of each auxiliary reward."""
