"""The layers that mix tokens, over rows of a prompt and its completions."""
