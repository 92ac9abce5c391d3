"""What passes memo's counters on to other systems: one module for each, the only one that imports its library."""
