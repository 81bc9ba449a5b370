"""Files and folders that survive a kill: atomic writes, locks, manifests and checkpoints."""
