"""What all studies compute and draw with: statistics, cells, figures, diagrams, provenance."""
