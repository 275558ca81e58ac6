"""The hardware: everything the guest can see, as plain values and methods.

The devices know no clock, no thread, no socket and no randomness.  Time and random bytes arrive as arguments, and
whatever must happen elsewhere comes back as a value (`devices.effects.Effects`).
"""
