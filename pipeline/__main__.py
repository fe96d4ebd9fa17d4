"""`python -m pipeline` is `fcn-pipeline`."""

from pipeline.cli import main

main()
