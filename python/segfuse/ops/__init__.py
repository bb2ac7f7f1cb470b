"""The ops: one pass over memory each. Arguments are checked here and nowhere else."""
