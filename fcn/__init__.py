"""Fully convolutional networks: the nets and their mathematics, in plain PyTorch."""
