"""The artifact room: immutable, verifiable versions of an adapter, and the one way to load and ask them."""
