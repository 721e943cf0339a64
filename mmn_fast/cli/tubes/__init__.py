"""What commands do with tubes (HC-STVG)."""
