"""A conformance report: each obligation that virtio 1.3 puts on a device, tried on the device of this project.

- `statements.toml` is the catalogue, `catalogue` reads it.
- `transports` are the ways in which a driver can reach the balloon; each statement applies to some.
- `rig` is one board without a CPU with a driver on it; modules `check_…` have one function for each statement, which
  drives a rig as a real driver would and raises `Violation` when the device breaks the statement.
- `runner` tries statements over transports, `report` writes what came out.
- `mutations.toml` are small mistakes put into the device's source; `mutants` finds out whether the statement that each
  names notices.

It drives the board that `vmm boot` runs, by its buses alone, and names no device of its own.
"""
