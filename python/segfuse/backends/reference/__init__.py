"""The definition of every op in plain torch, written for reading."""
