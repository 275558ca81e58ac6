"""gdb's remote serial protocol: any gdb for x86-64 is a debugger of the machine.

`packets` is the framing, `registers` the target description and how registers are written, `session` what is said over
one connection, `server` who is let in and how gdb hears of a stop.  What stops the processor is `vmm.cpu.debugger`.
"""
