"""Files on disk: writes that are whole or absent, checksums, untrusted files, and remains of killed processes."""
