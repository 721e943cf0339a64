"""What an export directory contains: its manifest, its plans' sidecars, its stages. Below the backends; no torch."""
