"""Debian's kernel and busybox, as the machine's own apt can get them: fetched once, unpacked in the user's cache folder
and never installed.  Nothing here needs root, and nothing of the system is changed."""
