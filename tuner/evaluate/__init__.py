"""The evaluation room: the adapter against the prompted base on the same items, every number with its n and interval."""
