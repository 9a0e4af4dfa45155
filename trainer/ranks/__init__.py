"""The trainer's processes: what they tell each other, and who is named when one hangs."""
