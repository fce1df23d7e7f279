"""Evidence: from logs to a record that stands. Reads records, judges them, writes them."""
