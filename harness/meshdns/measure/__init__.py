"""From a plan to stored samples: blocks of cells in random order, load, counters, validity."""
