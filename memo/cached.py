"""The types of what `cache_aside` returns, for type checkers; nothing here runs."""
