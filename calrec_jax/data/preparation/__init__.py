"""From raw files to a dataset of the store: rules, engines, statistics; and synthetic raw files."""
