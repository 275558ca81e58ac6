"""An initramfs for a Linux guest: the archive, the modules in it and their order, and what else it takes to get to a
shell.  The parts know nothing of each other but in `packing`; nothing here boots anything."""
