"""Studies: a base, a generator, arms that start from the base, seeds, and one page of results."""
