"""The trainer's side: gives every live server a version, and those that come late too."""
