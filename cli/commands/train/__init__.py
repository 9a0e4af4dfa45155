"""Commands that train, and start what training needs."""
