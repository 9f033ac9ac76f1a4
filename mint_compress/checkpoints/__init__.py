"""Reading what others wrote without running it: files, the architecture they belong to, its weights.

A file may come from anywhere. Whatever is in it, reading gives a network or a MintError of one line. It runs
nothing that the file brings, imports nothing that the user has not trusted, and holds tensors of no more
bytes than the file has. Data from a file is checked before anything walks over it: an exception in our own
code is a fault of ours and is never passed off as a damaged file. Only calls of libraries, and of the code
of the layers' classes, are watched for what they raise.
"""
