"""QMP, QEMU's machine protocol: JSON in, JSON out.

`stream` makes messages of bytes, `types` and `table` say which commands, arguments, answers and events there are,
`schema` checks arguments against them and describes them, `session` is one client's conversation, `events` is what all
clients hear.  The commands themselves are in `machine_commands`, `qom`, `virtio` and `pci`.  Commands, answers, events
and errors are those of QEMU 7.2 where it has them.
"""
