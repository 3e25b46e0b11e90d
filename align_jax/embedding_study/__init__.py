"""A study of embedders: prompt levels, ways to mine hard negatives, seeds, one page of results."""
