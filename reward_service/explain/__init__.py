"""Why a completion earned what it did, for people."""
