"""The shell's commands about machines that run: `vmm ps`, `vmm balloon`, `vmm stats` and `vmm ctl`.

Clients of QMP over the sockets of `vmm.control.registry`, and nothing more: another program could do the same.
"""
