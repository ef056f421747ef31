"""What every room uses: the family of errors, processes, units and their words, progress."""
