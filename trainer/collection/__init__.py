"""Groups in: what is asked for, what comes back, and what becomes of it."""
