"""`python -m mmn_fast` runs the command `mmn-fast`."""

from mmn_fast.cli import main

main()
