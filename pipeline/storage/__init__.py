"""Where results lie: the store, object stores, the cache of a machine, locks, cleaning."""
