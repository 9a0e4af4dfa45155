"""The frame of every HTTP service, and the clients that speak to them."""
