"""Data sets: readers of layouts, Arrow shards, the order of samples, augmentation, loading."""
