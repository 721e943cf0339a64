"""Files on disk: whole writes, checksums, reading of untrusted files, and removal of killed processes' remains."""
