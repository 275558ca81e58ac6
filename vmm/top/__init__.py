"""`vmm top`: the running machines, live on a terminal.

Another process than the machines, which it knows from their QMP sockets only.  `data` is what is known of them, `feed`
asks them, `panels` makes text of it and `view` is the program on the terminal, the only one that needs textual.
"""
