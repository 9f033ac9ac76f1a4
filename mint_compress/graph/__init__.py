"""Which channels go together: channel groups, found and proved."""
