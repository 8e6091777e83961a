"""Another program's training config to a distft config: a table of keys for each program."""
