"""The configuration: what can be chosen, what it defaults to, and how it is read."""
