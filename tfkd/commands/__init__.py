"""The commands: flags, and a call of the rooms below."""
