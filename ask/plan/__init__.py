"""From a configuration to the one graph of its jobs; what a run would cost, what is done, what would run again."""
