"""The report of a search, from the records of its trials alone."""
