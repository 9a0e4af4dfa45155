"""How the bytes of a version get to this server: one file each."""
