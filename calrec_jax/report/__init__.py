"""What evaluations found, for people: a page of a run, and runs beside each other."""
