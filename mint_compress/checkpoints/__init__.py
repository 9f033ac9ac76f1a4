"""Reading what others wrote without running it: files, the architecture they belong to, its weights."""
