"""`python -m tuning` is `fcn-tune`."""

from tuning.cli import main

main()
