"""Driving a machine that runs, from outside: who attends to it, over which sockets, and what is understood there.

Everything here happens on the thread that runs the machine, between two runs of its CPU: a second thread would slow the
CPU's callbacks a hundredfold.  `attendants` is what the machine calls and waits with; `address` and `sockets` are how
bytes come and go; the protocols each have a package of their own.
"""
