"""What each element of an answer adds to its reward."""
