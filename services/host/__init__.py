"""This host: addresses, ports, programs, processes, environment, GPU memory."""
