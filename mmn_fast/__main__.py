"""`python -m mmn_fast` is the command `mmn-fast`."""

from mmn_fast.cli import main

main()
